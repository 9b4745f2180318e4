//! The roles of a restore. A whole server gets every recorded role that it lacks; a restore of less gets those that own
//! or are granted something in what is restored, and the groups they are in. A role that is there is never altered,
//! and neither are the groups it is in. The statements are made from the recorded roles, not from the text of
//! `globals.sql`.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Result};
use crate::source::postgres::connect::{Session, value};
use crate::source::postgres::facts::{Cluster, Database, Membership, Role};
use crate::source::postgres::quote::{ident, literal, name_list};
use crate::types::some_of;

/// How many roles a sentence names.
const NAMED: usize = 12;

/// Which roles a restore gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Every recorded one: a whole server is restored.
    All,
    /// Those that the databases need.
    OfDatabases,
}

/// What is to be done about roles, and what is not.
#[derive(Debug, Default)]
pub(super) struct RolePlan {
    /// Missing, and the databases can not do without.
    needed: BTreeSet<String>,
    /// Missing, and recorded.
    further: BTreeSet<String>,
    roles: BTreeMap<String, Role>,
    /// Of the roles to be made, in groups that are there or will be.
    memberships: Vec<Membership>,
    version: u32,
    /// The server was made for this restore, and has none of them.
    new_server: bool,
    /// What the operator should know.
    pub(super) notes: Vec<String>,
}

/// What the server has.
struct Existing {
    roles: BTreeSet<String>,
    /// Member and group.
    memberships: BTreeSet<(String, String)>,
    /// Whether the user may create roles.
    may_create: bool,
}

/// Compares the recorded roles with those of the server. Changes nothing.
///
/// # Errors
/// One is missing that the databases need, and it can not be created: names them all.
pub(super) async fn plan(
    server: &Session,
    version: u32,
    cluster: &Cluster,
    databases: &[&Database],
    wanted: Wanted,
    new_server: bool,
) -> Result<RolePlan> {
    let existing = existing(server).await?;
    let needed = needed(cluster, databases, &existing.roles);
    let roles: BTreeMap<String, Role> = cluster
        .roles
        .iter()
        .map(|r| (r.name.clone(), r.clone()))
        .collect();
    if !needed.is_empty() && !existing.may_create {
        return Err(Error::usage(format!(
            "the server lacks roles that the dump needs, and the user may not create roles: {}",
            named(&needed)
        ))
        .hint("Create them first (globals.sql in a restore to a directory has the statements), or restore as a superuser."));
    }
    if let Some(name) = needed.iter().find(|name| !roles.contains_key(*name)) {
        return Err(Error::usage(format!(
            "the server lacks the role {name:?}, and the backup does not describe it"
        ))
        .hint("Create the role first."));
    }
    let absent: BTreeSet<String> = roles
        .keys()
        .filter(|name| !existing.roles.contains(*name) && !needed.contains(*name))
        .cloned()
        .collect();
    let mut plan = RolePlan {
        needed,
        roles,
        version,
        new_server,
        ..RolePlan::default()
    };
    match wanted {
        Wanted::All if existing.may_create => plan.further = absent,
        Wanted::All => plan.tell_left_out(&absent, "the user may not create roles"),
        Wanted::OfDatabases => {
            let worth: BTreeSet<String> = absent
                .into_iter()
                .filter(|name| plan.is_worth_telling(name, cluster))
                .collect();
            plan.tell_left_out(
                &worth,
                "nothing that is restored belongs to them or is granted to them",
            );
        }
    }
    plan.take_memberships(cluster, &existing, wanted);
    plan.tell_made_and_kept(&existing, wanted);
    Ok(plan)
}

async fn existing(server: &Session) -> Result<Existing> {
    let doing = "list the roles";
    let sql = "SELECT rolname::text FROM pg_catalog.pg_roles";
    let rows = server.rows(doing, sql, &[]).await?;
    let roles: Result<BTreeSet<String>> = rows.iter().map(|row| value(row, 0)).collect();
    let sql =
        "SELECT pg_get_userbyid(member)::text, pg_get_userbyid(roleid)::text FROM pg_catalog.pg_auth_members";
    let rows = server.rows(doing, sql, &[]).await?;
    let memberships: Result<BTreeSet<(String, String)>> = rows
        .iter()
        .map(|row| Ok((value(row, 0)?, value(row, 1)?)))
        .collect();
    let sql = "SELECT rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user";
    Ok(Existing {
        roles: roles?,
        memberships: memberships?,
        may_create: value(&server.row("ask for privileges", sql, &[]).await?, 0)?,
    })
}

/// Needed and not there, with the groups that they are in. Predefined roles are the server's own affair.
fn needed(cluster: &Cluster, databases: &[&Database], existing: &BTreeSet<String>) -> BTreeSet<String> {
    let mut missing = BTreeSet::new();
    let mut queue: Vec<&str> = Vec::new();
    for database in databases {
        queue.extend(database.roles.iter().map(String::as_str));
        queue.push(&database.owner);
        queue.extend(database.grants.iter().flatten().filter_map(|g| g.role.as_deref()));
        queue.extend(database.settings.iter().filter_map(|s| s.role.as_deref()));
    }
    while let Some(name) = queue.pop() {
        if !existing.contains(name) && !is_predefined(name) && missing.insert(name.to_owned()) {
            let of = cluster.memberships.iter().filter(|m| m.member == name);
            queue.extend(of.map(|m| m.group.as_str()));
        }
    }
    missing
}

/// The server gives such names to its own roles only.
fn is_predefined(name: &str) -> bool {
    name.starts_with("pg_")
}

/// Some names of many, quoted.
fn named(names: &BTreeSet<String>) -> String {
    let quoted: Vec<String> = names.iter().map(|n| format!("{n:?}")).collect();
    some_of(&quoted, NAMED, ", ")
}

impl RolePlan {
    /// Nobody misses a role that can do nothing.
    fn is_worth_telling(&self, name: &str, cluster: &Cluster) -> bool {
        let attributes = self.roles.get(name).is_some_and(|r| {
            r.login || r.superuser || r.create_role || r.create_database || r.replication || r.bypass_rls
        });
        attributes
            || cluster
                .memberships
                .iter()
                .any(|m| m.member == name || m.group == name)
    }

    fn tell_left_out(&mut self, names: &BTreeSet<String>, why: &str) {
        if !names.is_empty() {
            self.notes.push(format!(
                "recorded roles are not there and are left out ({why}): {}; globals.sql of a restore to a directory has them",
                named(names)
            ));
        }
    }

    fn take_memberships(&mut self, cluster: &Cluster, existing: &Existing, wanted: Wanted) {
        let mut unknown = BTreeSet::new();
        let mut kept = BTreeSet::new();
        for m in &cluster.memberships {
            let made = |name: &String| self.needed.contains(name) || self.further.contains(name);
            let shown = format!("{} in {}", m.member, m.group);
            if made(&m.member) {
                if made(&m.group) || existing.roles.contains(&m.group) {
                    self.memberships.push(m.clone());
                } else {
                    unknown.insert(shown);
                }
            } else if existing.roles.contains(&m.member)
                && !existing
                    .memberships
                    .contains(&(m.member.clone(), m.group.clone()))
                && (made(&m.group) || wanted == Wanted::All && existing.roles.contains(&m.group))
                && self.roles.contains_key(&m.member)
            {
                kept.insert(shown);
            }
        }
        if !unknown.is_empty() {
            self.notes.push(format!(
                "memberships in groups that this server does not have are left out: {}",
                named(&unknown)
            ));
        }
        if !kept.is_empty() {
            self.notes.push(format!(
                "roles that are there were not put into groups that they were recorded in: {}",
                named(&kept)
            ));
        }
    }

    fn tell_made_and_kept(&mut self, existing: &Existing, wanted: Wanted) {
        let kept: BTreeSet<String> = self
            .roles
            .keys()
            .filter(|name| existing.roles.contains(*name))
            .cloned()
            .collect();
        if wanted == Wanted::All && !self.new_server && !kept.is_empty() {
            self.notes.push(format!(
                "roles that are there are left as they are (password, settings, groups): {}",
                named(&kept)
            ));
        }
        let bare: BTreeSet<String> = self
            .made()
            .filter(|name| {
                self.roles
                    .get(*name)
                    .is_some_and(|r| r.login && r.password.is_none())
            })
            .cloned()
            .collect();
        if !bare.is_empty() {
            self.notes.push(format!(
                "roles have no recorded password and get none: {}",
                named(&bare)
            ));
        }
    }

    fn made(&self) -> impl Iterator<Item = &String> {
        self.needed.iter().chain(&self.further)
    }

    /// Creates what is missing. Gives what was done.
    ///
    /// # Errors
    /// One that the databases need can not be created.
    pub(super) async fn carry_out(self, server: &Session) -> Result<Vec<String>> {
        let all: BTreeSet<String> = self.made().cloned().collect();
        if all.is_empty() {
            return Ok(Vec::new());
        }
        // As one transaction: all of them or none.
        let statements = self.statements(|name| all.contains(name));
        let doing = format!("create the missing roles {}", named(&all));
        match server.run(&doing, &statements.join(";\n")).await {
            Ok(()) => Ok(self.told_made(&all)),
            Err(e) if self.further.is_empty() || server.is_closed() => {
                Err(e.hint("Create them first, or restore as a superuser."))
            }
            Err(_) => self.one_by_one(server).await,
        }
    }

    /// Who may not make one role (with more power than his own) may make the others: what the databases need must be
    /// made, and of the rest each that can be.
    async fn one_by_one(&self, server: &Session) -> Result<Vec<String>> {
        let needed = self.statements(|name| self.needed.contains(name));
        if !needed.is_empty() {
            let doing = format!("create the missing roles {}", named(&self.needed));
            server
                .run(&doing, &needed.join(";\n"))
                .await
                .map_err(|e| e.hint("Create them first, or restore as a superuser."))?;
        }
        let (mut made, mut told) = (self.needed.clone(), Vec::new());
        for name in &self.further {
            let statements = self.roles.get(name).map(create_role).unwrap_or_default();
            match server
                .run(&format!("create the role {name:?}"), &statements.join(";\n"))
                .await
            {
                Ok(()) => {
                    made.insert(name.clone());
                }
                Err(e) if server.is_closed() => return Err(e),
                Err(e) => told.push(format!("role {name:?} is left out: {}", e.chain())),
            }
        }
        // The groups of a needed role are needed too: it is in them already.
        let left = |m: &&Membership| made.contains(&m.member) && !self.needed.contains(&m.member);
        for m in self.memberships.iter().filter(left) {
            let doing = format!("put {:?} into {:?}", m.member, m.group);
            match server.run(&doing, &self.grant(m)).await {
                Ok(()) => {}
                Err(e) if server.is_closed() => return Err(e),
                Err(e) => told.push(format!(
                    "role {:?} is not in {:?}: {}",
                    m.member,
                    m.group,
                    e.chain()
                )),
            }
        }
        told.extend(self.told_made(&made));
        Ok(told)
    }

    fn told_made(&self, made: &BTreeSet<String>) -> Vec<String> {
        match self.new_server {
            true => Vec::new(),
            false => vec![format!("created the missing roles {}", named(made))],
        }
    }

    /// The statements that make some of the roles and put them into their groups.
    fn statements(&self, of: impl Fn(&String) -> bool) -> Vec<String> {
        let is_made = |name: &String| self.needed.contains(name) || self.further.contains(name);
        let roles = self
            .made()
            .filter(|name| of(name))
            .filter_map(|name| self.roles.get(name));
        let mut statements: Vec<String> = roles.flat_map(create_role).collect();
        let memberships = self
            .memberships
            .iter()
            .filter(|m| of(&m.member) && (of(&m.group) || !is_made(&m.group)));
        statements.extend(memberships.map(|m| self.grant(m)));
        statements
    }

    fn grant(&self, m: &Membership) -> String {
        let mut sql = format!("GRANT {} TO {}", ident(&m.group), ident(&m.member));
        match (self.version >= 160_000, m.inherit, m.set) {
            (true, Some(inherit), Some(set)) => {
                sql.push_str(&format!(" WITH ADMIN {}, INHERIT {inherit}, SET {set}", m.admin));
            }
            _ if m.admin => sql.push_str(" WITH ADMIN OPTION"),
            _ => {}
        }
        sql
    }
}

fn create_role(role: &Role) -> Vec<String> {
    let name = ident(&role.name);
    let mut sql = format!("CREATE ROLE {name} WITH");
    let options = [
        (role.superuser, "SUPERUSER", "NOSUPERUSER"),
        (role.inherit, "INHERIT", "NOINHERIT"),
        (role.create_role, "CREATEROLE", "NOCREATEROLE"),
        (role.create_database, "CREATEDB", "NOCREATEDB"),
        (role.login, "LOGIN", "NOLOGIN"),
    ];
    for (on, yes, no) in options {
        sql.push(' ');
        sql.push_str(if on { yes } else { no });
    }
    // Only superusers may so much as deny these two.
    for (on, yes) in [
        (role.replication, " REPLICATION"),
        (role.bypass_rls, " BYPASSRLS"),
    ] {
        if on {
            sql.push_str(yes);
        }
    }
    sql.push_str(&format!(" CONNECTION LIMIT {}", role.connection_limit));
    if let Some(password) = &role.password {
        sql.push_str(&format!(" PASSWORD {}", literal(password)));
    }
    if let Some(until) = &role.valid_until {
        sql.push_str(&format!(" VALID UNTIL {}", literal(until)));
    }
    let mut list = vec![sql];
    list.extend(
        role.settings
            .iter()
            .filter_map(|s| setting(s).map(|set| format!("ALTER ROLE {name} SET {set}"))),
    );
    list
}

/// `name=value` as `name TO value`. Settings that are lists of names are given name by name, as the server wants them.
pub(super) fn setting(text: &str) -> Option<String> {
    const LISTS: [&str; 6] = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    let (name, value) = text.split_once('=')?;
    let value = if LISTS.contains(&name.to_ascii_lowercase().as_str()) {
        let items: Vec<String> = name_list(value).iter().map(|i| literal(i)).collect();
        if items.is_empty() {
            literal("")
        } else {
            items.join(", ")
        }
    } else {
        literal(value)
    };
    let name: Vec<String> = name.split('.').map(ident).collect();
    Some(format!("{} TO {value}", name.join(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_set_as_the_server_wants_them() {
        assert_eq!(
            setting("work_mem=4 MB").as_deref(),
            Some("\"work_mem\" TO '4 MB'")
        );
        assert_eq!(
            setting("search_path=\"$user\", public").as_deref(),
            Some("\"search_path\" TO '$user', 'public'")
        );
        assert_eq!(
            setting("my.x=a'b\\").as_deref(),
            Some("\"my\".\"x\" TO E'a''b\\\\'")
        );
    }

    #[test]
    fn a_hostile_role_stays_a_name() {
        let role = Role {
            name: "a\"; DROP ROLE b; --".into(),
            connection_limit: -1,
            password: Some("x'y".into()),
            ..Role::default()
        };
        assert_eq!(
            create_role(&role),
            [
                "CREATE ROLE \"a\"\"; DROP ROLE b; --\" WITH NOSUPERUSER NOINHERIT NOCREATEROLE NOCREATEDB NOLOGIN CONNECTION LIMIT -1 PASSWORD 'x''y'"
            ]
        );
    }
}
