//! The one table of environment variables of our own (all begin with `LIFEBOAT_`). What a policy refers to has names of the
//! operator's choice; `policies/environment.md` lists both.

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// What it is for, with what holds when it is not set.
    pub doc: &'static str,
    /// The commands that look at it.
    pub commands: &'static str,
}

/// All of them. None is a secret.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: "LIFEBOAT_POLICY",
        doc: "The policy file, when --policy is not given; else ./policy.toml, then /etc/lifeboat/policy.toml",
        commands: "all that need a policy",
    },
    Variable {
        name: "LIFEBOAT_STATE",
        doc: "The state directory, when the policy has no state.dir; else $STATE_DIRECTORY, then /var/lib/lifeboat",
        commands: "all that need a policy",
    },
    Variable {
        name: "LIFEBOAT_LOG",
        doc: "What is logged: error, warn, info, debug, trace of Lifeboat's own, or filters such as lifeboat=debug,hyper=info",
        commands: "all",
    },
    Variable {
        name: "LIFEBOAT_PG_BIN",
        doc: "Where Postgres client programs are looked for first, when the source has no client_dir",
        commands: "check, run, restore",
    },
    Variable {
        name: "LIFEBOAT_DEMO_POSTGRES_BIN",
        doc: "Where the demo finds Postgres server programs; else ./.services, /usr/lib/postgresql, PATH",
        commands: "demo",
    },
    Variable {
        name: "LIFEBOAT_DEMO_POCKETBASE",
        doc: "The PocketBase program of the demo; else ./.services, PATH",
        commands: "demo",
    },
];
