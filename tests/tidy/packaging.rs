//! What is under packaging/, the Dockerfile and the Debian package: what can be held without systemd, an engine or a cluster.
//!
//! `packaging/debian/test` and `packaging/container/test` try the rest, as root.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use lifeboat::policy::{self, SecretRef};

use super::{assert_tidy, project, texts_under};

/// What every service has, whatever it does.
const HARDENED: [&str; 20] = [
    "CapabilityBoundingSet=",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "NoNewPrivileges=yes",
    "PrivateDevices=yes",
    "PrivateTmp=yes",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "RemoveIPC=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "StateDirectory=lifeboat",
    "SystemCallArchitectures=native",
    "UMask=0077",
];

/// What differs: a drill's target gets name spaces of its own.
const ALONE: [&str; 3] = [
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "SystemCallFilter=@system-service",
];
const WITH_TARGETS: [&str; 3] = [
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
    "RestrictNamespaces=user mnt net ipc pid uts",
    "SystemCallFilter=@system-service @mount",
];

fn read(name: &str) -> String {
    std::fs::read_to_string(project().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// What lacks of a service or a timer.
fn bad_unit(path: &str, text: &str) -> Vec<String> {
    let has = |line: &str| text.lines().any(|l| l == line);
    let mut wanted: Vec<&str> = Vec::new();
    if path.ends_with(".timer") {
        wanted.extend(["Persistent=true", "WantedBy=timers.target"]);
    } else {
        wanted.extend(HARDENED);
        let drills = ["daemon.service", "drill.service"]
            .iter()
            .any(|unit| path.ends_with(unit));
        wanted.extend(if drills { WITH_TARGETS } else { ALONE });
        wanted.push("User=lifeboat");
        // The older type first: systemd before 253 ignores the line that it does not know.
        if text.contains("Type=notify") {
            wanted.extend([
                "Type=notify\nType=notify-reload",
                "WatchdogSec=2min",
                "TimeoutStopSec=1min",
            ]);
        } else {
            wanted.extend(["Type=oneshot", "TimeoutStartSec=2d", "TimeoutStopSec=2min"]);
        }
    }
    let lacks = |line: &&&str| !(has(line) || line.contains('\n') && text.contains(**line));
    let lacking = wanted
        .iter()
        .filter(lacks)
        .map(|line| format!("{path}: no {line}"));
    lacking.collect()
}

#[test]
fn the_units_are_hardened() {
    let units = texts_under(&["packaging/systemd/"]);
    assert!(units.len() > 5);
    assert_tidy(
        units
            .iter()
            .flat_map(|(path, text)| bad_unit(path, text))
            .collect(),
    );
    // Seen failing.
    let (path, text) = units
        .iter()
        .find(|(path, _)| path.ends_with("daemon.service"))
        .unwrap();
    for line in [
        "ProtectSystem=strict",
        "Type=notify-reload",
        "WatchdogSec=2min",
        "RestrictNamespaces=user mnt net ipc pid uts",
    ] {
        assert_eq!(bad_unit(path, &text.replace(line, "")).len(), 1, "{line}");
    }
}

#[test]
fn example_policies_are_valid_and_their_secrets_are_mounted() {
    let mut seen = 0;
    for (path, text) in texts_under(&["packaging/"]) {
        if !path.ends_with(".toml") {
            continue;
        }
        seen += 1;
        let policy =
            policy::parse(&text, Path::new("p.toml"), &|_| None).unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(!policy.sources.is_empty(), "{path}");
        // Nobody holds an identity of these, and the program refuses them: they must be those it knows.
        for recipient in &policy.encryption.recipients {
            assert!(
                policy::examples::RECIPIENTS.contains(&recipient.as_str()),
                "{path}: {recipient}"
            );
        }
        let beside = match path.split('/').nth(1).unwrap() {
            "compose" => read("packaging/compose/docker-compose.yml"),
            _ => read("packaging/kubernetes/deployment.yaml") + &read("packaging/kubernetes/cronjobs.yaml"),
        };
        for file in text
            .split("file = \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            let name = file
                .strip_prefix("/run/secrets/")
                .unwrap_or_else(|| panic!("{path}: {file}"));
            assert!(beside.contains(name), "{path}: {name} is mounted by nobody");
        }
        // Containers have no credentials of systemd, and a secret in the environment is seen by whoever inspects them.
        let credentials = policy.repository.credentials.unwrap();
        assert!(matches!(credentials.access_key_id, SecretRef::File(_)), "{path}");
        assert!(
            !text.contains("{ env") && !text.contains("{ credential"),
            "{path}"
        );
    }
    assert_eq!(seen, 3);
}

#[test]
fn the_image_has_the_clients_of_every_supported_postgres() {
    let compose = read("docker-compose.test.yml");
    let tested: BTreeSet<&str> = compose
        .lines()
        .filter_map(|line| line.trim().strip_prefix("image: postgres:")?.split('-').next())
        .collect();
    assert!(tested.len() > 3);
    let dockerfile = read("Dockerfile");
    let majors = dockerfile
        .lines()
        .find_map(|line| line.strip_prefix("ARG POSTGRES_MAJORS="))
        .unwrap();
    let inside: BTreeSet<&str> = majors.trim_matches('"').split(' ').collect();
    assert_eq!(inside, tested);
    assert!(read("packaging/container/pgdg.asc").starts_with("-----BEGIN PGP PUBLIC KEY BLOCK-----"));
}

/// Whether a file of the project gets into the image's build.
fn is_copied(dockerfile: &str, ignore: &str, name: &str) -> bool {
    let covers = |given: &str| name == given || name.starts_with(&format!("{given}/"));
    let copied = dockerfile
        .lines()
        .filter_map(|line| line.strip_prefix("COPY "))
        .flat_map(str::split_whitespace)
        .any(covers);
    copied
        && ignore
            .lines()
            .filter_map(|line| line.strip_prefix('!'))
            .any(covers)
}

#[test]
fn the_image_is_built_of_what_it_needs_and_runs_as_nobody_special() {
    let dockerfile = read("Dockerfile");
    let ignore = read(".dockerignore");
    for name in ["Cargo.toml", "Cargo.lock", "src"] {
        assert!(is_copied(&dockerfile, &ignore, name), "{name}");
    }
    for (path, text) in texts_under(&["src/"]) {
        // Tests are not built there.
        let text = text.split("#[cfg(test)]").next().unwrap();
        for file in text
            .split("(\"../../")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
        {
            assert!(is_copied(&dockerfile, &ignore, file), "{path} needs {file}");
        }
    }
    assert!(!is_copied(&dockerfile, &ignore, "tests/tidy.rs"));

    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let rust = manifest["package"]["rust-version"].as_str().unwrap();
    assert!(
        dockerfile.contains(&format!("FROM rust:{rust}-bookworm AS build\n")),
        "Rust {rust}"
    );
    assert!(dockerfile.contains(&format!("\nARG VERSION={}\n", version())));
    // Each stage that is an image ends as another user than root, in a group that may write what the image has.
    for stage in dockerfile.split("\nFROM ").skip(2) {
        let user = stage
            .lines()
            .filter_map(|line| line.strip_prefix("USER "))
            .next_back();
        assert_eq!(user, Some("10001:0"), "{stage}");
    }
    for line in [
        "STOPSIGNAL SIGTERM",
        "EXPOSE 9184",
        "VOLUME /var/lib/lifeboat",
        "CMD [\"daemon\"]",
        "ENTRYPOINT [\"/usr/bin/tini\", \"-s\", \"--\", \"backup\"]",
    ] {
        assert!(dockerfile.lines().any(|l| l == line), "{line}");
    }
    let health = dockerfile
        .lines()
        .find(|line| line.starts_with("HEALTHCHECK "))
        .unwrap();
    assert!(
        health.ends_with("CMD [\"backup\", \"status\", \"--alive\"]"),
        "{health}"
    );
    let architectures = ["amd64", "arm64", "x86_64", "aarch64"];
    let told = dockerfile.lines().filter(|line| !line.starts_with('#'));
    assert!(
        !told
            .into_iter()
            .any(|line| architectures.iter().any(|a| line.contains(a)))
    );
}

/// What is loose in a manifest, or in the compose file.
fn loose(path: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let count = |what: &str| text.matches(what).count();
    let containers = count("image: ");
    let wanted: &[&str] = if path.contains("kubernetes") {
        &[
            "readOnlyRootFilesystem: true",
            "runAsNonRoot: true",
            "allowPrivilegeEscalation: false",
            "capabilities: { drop: [ALL] }",
            "seccompProfile: { type: RuntimeDefault }",
            "automountServiceAccountToken: false",
            "terminationGracePeriodSeconds: 60",
            "limits: { memory: ",
        ]
    } else {
        &[
            "read_only: true",
            "cap_drop: [ALL]",
            "security_opt: [\"no-new-privileges:true\"]",
            "stop_grace_period: 1m",
        ]
    };
    for what in wanted.iter().filter(|what| count(what) != containers) {
        problems.push(format!("{path}: not every container has {what}"));
    }
    if count(&format!("lifeboat:{}\n", version())) != containers {
        problems.push(format!("{path}: an image is not of version {}", version()));
    }
    // Secrets are files: what stands in the environment is seen by whoever may look at the container.
    for word in [
        "env:",
        "environment:",
        "envFrom:",
        "stringData:",
        "privileged: true",
        ":latest",
    ] {
        if text
            .lines()
            .any(|line| line.trim_start_matches([' ', '-']).starts_with(word))
            || (word == ":latest" && count(word) > 0)
        {
            problems.push(format!("{path}: {word}"));
        }
    }
    problems
}

#[test]
fn containers_are_confined() {
    let compose = "packaging/compose/docker-compose.yml";
    let mut texts = texts_under(&["packaging/kubernetes/"]);
    texts.retain(|(path, _)| path.ends_with(".yaml"));
    assert_eq!(texts.len(), 2);
    texts.push((compose.to_owned(), read(compose)));
    assert_tidy(texts.iter().flat_map(|(path, text)| loose(path, text)).collect());
    for (path, text) in &texts {
        let tagged = text.replace(&format!("lifeboat:{}", version()), "lifeboat:latest");
        assert_eq!(loose(path, &tagged).len(), 2, "{path}");
    }
    let deployment = &texts
        .iter()
        .find(|(path, _)| path.ends_with("deployment.yaml"))
        .unwrap()
        .1;
    for line in [
        "replicas: 1",
        "strategy: { type: Recreate }",
        "httpGet: { path: /readyz, port: http }",
    ] {
        assert!(deployment.contains(line), "{line}");
    }
    let jobs = &texts
        .iter()
        .find(|(path, _)| path.ends_with("cronjobs.yaml"))
        .unwrap()
        .1;
    for line in [
        "concurrencyPolicy: Forbid",
        "restartPolicy: Never",
        "backoffLimit: ",
        "startingDeadlineSeconds: ",
        "activeDeadlineSeconds: ",
    ] {
        assert_eq!(jobs.matches(line).count(), 3, "{line}");
    }
}

/// Every command line of ours in a text: after what stands before it, to the end of the line or the list.
fn commands(text: &str) -> Vec<Vec<String>> {
    let words = |list: &str| -> Vec<String> {
        let split = list
            .split([',', ' '])
            .map(|word| word.trim_matches(['"', '\'', '[', ']', ' ']));
        split.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    };
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split("  #").next().unwrap();
        for before in [
            "compose run --rm lifeboat ",
            "-- backup ",
            "args: [",
            "command: [backup, ",
            "CMD [\"backup\", ",
            "CMD [\"daemon",
        ] {
            if let Some((_, rest)) = line.split_once(before) {
                let rest = if before.ends_with("daemon") {
                    "daemon"
                } else {
                    rest
                };
                found.push(words(rest.split(']').next().unwrap()));
            }
        }
    }
    found
}

#[test]
fn every_command_line_is_understood() {
    let elsewhere = tempfile::tempdir().unwrap();
    let mut texts = texts_under(&["packaging/compose/", "packaging/kubernetes/"]);
    texts.push(("Dockerfile".to_owned(), read("Dockerfile")));
    let mut seen = 0;
    for (path, text) in texts {
        for mut words in commands(&text) {
            words.retain(|word| word != "--policy" && !word.starts_with("/etc/lifeboat/"));
            // One that is understood gets as far as its policy, which is not there.
            let output = Command::new(env!("CARGO_BIN_EXE_backup"))
                .args(&words)
                .env("LIFEBOAT_POLICY", "/nonexistent")
                .current_dir(elsewhere.path())
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                said.contains("can not read the policy"),
                "{path}: {words:?}: {said}"
            );
            assert_eq!(output.status.code(), Some(2), "{path}: {words:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 11, "a command line is not found");
}

#[test]
fn the_debian_package_is_made_of_what_there_is() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let deb = &manifest["package"]["metadata"]["deb"];
    assert!(deb["depends"].as_str().unwrap().contains("$auto"));
    let mut installed = BTreeSet::new();
    for asset in deb["assets"].as_array().unwrap() {
        let field = |n: usize| asset[n].as_str().unwrap();
        let (from, to) = (field(0), field(1));
        let place = from.trim_end_matches('*');
        assert!(
            from.starts_with("target/") || project().join(place).exists(),
            "{from}"
        );
        let script = project().join(from).is_file() && to.starts_with("usr/bin");
        assert_eq!(
            field(2),
            if from == "target/release/backup" || script {
                "755"
            } else {
                "644"
            },
            "{from}"
        );
        installed.insert(to);
    }
    for place in [
        "usr/bin/",
        "usr/lib/systemd/system/",
        "usr/share/doc/lifeboat/examples/",
        "etc/default/lifeboat",
    ] {
        assert!(installed.contains(place), "{place}");
    }
    // It knows by name what it may remove: all that the state directory has, and nothing else.
    let purge = read("packaging/debian/postrm");
    for part in ["writer", "daemon.lock", "daemon.db", "runs", "scratch"] {
        assert!(purge.contains(&format!("\"$state/{part}\"")), "{part}");
    }
    assert!(!purge.contains("rm -rf \"$state\"") && !purge.contains("rm -rf /etc"));
}

#[test]
fn packaging_scripts_are_sound() {
    let mut seen = 0;
    for (path, text) in texts_under(&["packaging/"]) {
        // dpkg takes these whatever their mode, and cargo-deb gives them theirs.
        let maintainers = ["postinst", "prerm", "postrm"]
            .iter()
            .any(|name| path.ends_with(name));
        let file = project().join(&path);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        if !maintainers {
            assert_tidy(super::rules::script_mode(&path, &text, mode));
        }
        if let Some(shell) = text.lines().next().and_then(|line| line.strip_prefix("#!")) {
            let shell = shell.rsplit(['/', ' ']).next().unwrap();
            let output = Command::new(shell).arg("-n").arg(&file).output().unwrap();
            assert!(
                output.status.success(),
                "{path}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(text.contains("\nset -e"), "{path} goes on after a failure");
            seen += 1;
        }
    }
    assert_eq!(seen, 6);
}
