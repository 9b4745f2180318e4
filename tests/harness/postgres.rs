//! Real PostgreSQL servers, one for each major version that is installed.
//!
//! `LIFEBOAT_TEST_POSTGRES_<MAJOR>` (a URL of a superuser, as docker-compose.test.yml sets it) names a server
//! that runs elsewhere and takes the place of a shared one of that major. A server of one's own is always local.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use rustix::process::Signal;
use url::Url;

use super::guard::{Guard, Start};
use super::{INSTALL, Said, free_port, project, random_hex, run, run_ok};

/// The majors that Lifeboat knows.
const MAJORS: std::ops::RangeInclusive<u32> = 13..=18;
/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A PostgreSQL server of a test.
pub struct PostgresServer {
    major: u32,
    host: String,
    port: u16,
    user: String,
    password: String,
    local: Option<Local>,
}

/// A server that we started: nothing of it is left after the test.
struct Local {
    guard: Guard,
    directory: PathBuf,
}

impl PostgresServer {
    /// The majors of which there is a server, rising: for [`PostgresServer::shared`].
    ///
    /// # Panics
    /// 15 or the newest is missing: the tests would prove too little.
    pub fn all_majors() -> Vec<u32> {
        let here = Self::local_majors();
        MAJORS
            .filter(|major| external(*major).is_some() || here.contains(major))
            .collect()
    }

    /// The majors that can be started here, rising: for [`PostgresServer::start`].
    ///
    /// # Panics
    /// 15 or the newest is missing: the tests would prove too little.
    pub fn local_majors() -> Vec<u32> {
        let all: Vec<u32> = MAJORS.filter(|major| server_dir(*major).is_some()).collect();
        for needed in [15, *MAJORS.end()] {
            assert!(all.contains(&needed), "PostgreSQL {needed} is missing: {INSTALL}");
        }
        all
    }

    /// A server of the newest major that every test of this process shares.
    pub fn newest() -> &'static Self {
        Self::shared(*MAJORS.end())
    }

    /// A server that every test of this process shares: make databases of your own in it, and leave its roles and
    /// settings alone. (Under cargo-nextest each test is a process.)
    pub fn shared(major: u32) -> &'static Self {
        static SERVERS: OnceLock<Mutex<Vec<(u32, &'static PostgresServer)>>> = OnceLock::new();
        let mut servers = SERVERS
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, server)) = servers.iter().find(|(m, _)| *m == major) {
            return server;
        }
        // Never dropped: the guard ends it when this process ends.
        let server = external(major).map_or_else(|| Self::start(major), |url| Self::elsewhere(major, &url));
        let server: &'static Self = Box::leak(Box::new(server));
        servers.push((major, server));
        server
    }

    /// A server of one's own, ended and removed when dropped.
    ///
    /// # Panics
    /// It is not installed, or does not start.
    pub fn start(major: u32) -> Self {
        Self::start_with(major, &[])
    }

    /// A server of one's own with settings (`name=value`).
    ///
    /// # Panics
    /// It is not installed, or does not start.
    pub fn start_with(major: u32, settings: &[&str]) -> Self {
        // Another process may take the port between the look and the start.
        (0..3)
            .find_map(|_| Cluster::init(major).start(settings))
            .unwrap_or_else(|| panic!("PostgreSQL {major} does not start"))
    }

    fn elsewhere(major: u32, url: &str) -> Self {
        let url = Url::parse(url).unwrap_or_else(|e| panic!("LIFEBOAT_TEST_POSTGRES_{major}: {e}"));
        Self {
            major,
            host: url.host_str().expect("a host").to_owned(),
            port: url.port().unwrap_or(5432),
            user: url.username().to_owned(),
            password: url.password().unwrap_or_default().to_owned(),
            local: None,
        }
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        self.major
    }
    /// The host to connect to.
    pub fn host(&self) -> &str {
        &self.host
    }
    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }
    /// The superuser.
    pub fn user(&self) -> &str {
        &self.user
    }
    /// The superuser's password.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The URL of a database, with the superuser's password.
    pub fn url(&self, database: &str) -> String {
        let mut url = Url::parse("postgres://localhost").expect("a URL");
        url.set_host(Some(&self.host)).expect("a host");
        url.set_port(Some(self.port)).expect("a port");
        url.set_username(&self.user).expect("a user");
        url.set_password(Some(&self.password)).expect("a password");
        url.path_segments_mut().expect("a path").push(database);
        url.into()
    }

    /// The data directory of a local server.
    pub fn data_directory(&self) -> PathBuf {
        self.local().directory.join("data")
    }

    /// The directory of a local server's Unix socket.
    pub fn socket_directory(&self) -> &Path {
        &self.local().directory
    }

    /// The server's own programs: initdb, postgres, pg_ctl, and for most majors the clients too.
    pub fn bin_dir(&self) -> PathBuf {
        server_dir(self.major).unwrap_or_else(|| panic!("PostgreSQL {} is missing: {INSTALL}", self.major))
    }

    /// Client programs that fit this server: of its own major, or else of the next that has them.
    pub fn client_dir(&self) -> PathBuf {
        client_dir(self.major)
    }

    /// A new, empty database with a name of its own.
    pub fn create_database(&self) -> String {
        let name = format!("test_{}", random_hex(6));
        self.psql("postgres", &format!("create database {name}"));
        name
    }

    /// Runs SQL with psql and gives its rows: unaligned, columns parted by `|`, a line a row.
    ///
    /// # Panics
    /// A statement fails.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let said = self.try_psql(database, sql);
        assert_eq!(said.code, 0, "psql failed on {sql:?}: {said}");
        said.stdout.trim_end_matches('\n').to_owned()
    }

    /// Runs SQL that may fail.
    pub fn try_psql(&self, database: &str, sql: &str) -> Said {
        run(self.client("psql", database).args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--command",
            sql,
        ]))
    }

    /// A client program that is told by its environment where to connect.
    pub fn client(&self, program: &str, database: &str) -> Command {
        let mut command = Command::new(self.client_dir().join(program));
        command
            .env("PGHOST", &self.host)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", &self.user)
            .env("PGPASSWORD", &self.password)
            .env("PGDATABASE", database);
        command
    }

    /// Ends a local server as a crash would: no shutdown, recovery at the next start.
    pub fn kill(&self) {
        // SIGQUIT is Postgres's own crash: SIGKILL would leave its shared memory behind.
        self.local().guard.signal(Signal::QUIT);
        self.local().guard.wait_for_end(PATIENCE);
    }

    fn local(&self) -> &Local {
        let local = self.local.as_ref();
        local.unwrap_or_else(|| panic!("PostgreSQL {} runs elsewhere", self.major))
    }
}

/// A new cluster that no server runs on yet.
struct Cluster {
    major: u32,
    directory: tempfile::TempDir,
    password: String,
    programs: PathBuf,
}

impl Cluster {
    fn init(major: u32) -> Self {
        let programs =
            server_dir(major).unwrap_or_else(|| panic!("PostgreSQL {major} is missing: {INSTALL}"));
        // A Unix socket's path has at most 107 bytes: a short name.
        let directory = tempfile::Builder::new()
            .prefix("lb-pg-")
            .tempdir()
            .expect("no temporary directory");
        let cluster = Self {
            major,
            directory,
            password: random_hex(16),
            programs,
        };
        cluster.own(cluster.directory.path());
        let password_file = cluster.directory.path().join("password");
        let mut file = fs::File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&password_file)
            .expect("a password file");
        file.write_all(cluster.password.as_bytes())
            .expect("a password file");
        cluster.own(&password_file);
        let data = cluster.directory.path().join("data");
        run_ok(
            as_server_user(&cluster.programs.join("initdb"))
                .arg("--pgdata")
                .arg(&data)
                .arg("--pwfile")
                .arg(&password_file)
                .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync"])
                .args(["--encoding=UTF8", "--locale=C.UTF-8"]),
        );
        fs::remove_file(&password_file).expect("a password file");
        cluster
    }

    /// Gives a path to the user that runs the server.
    fn own(&self, path: &Path) {
        if let Some((user, group)) = server_user() {
            chown(path, Some(user), Some(group)).expect("a directory of another user");
        } else {
            let mode = if path.is_dir() { 0o700 } else { 0o600 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a private directory");
        }
    }

    /// Starts the server; nothing, when it ends at once.
    fn start(self, settings: &[&str]) -> Option<PostgresServer> {
        let port = free_port();
        // From here on the guard removes it.
        let directory = self.directory.keep();
        let command = as_server_user(&self.programs.join("postgres"));
        let mut arguments: Vec<std::ffi::OsString> = command.get_args().map(Into::into).collect();
        arguments.extend(["-D".into(), directory.join("data").into()]);
        arguments.extend(["-k".into(), directory.clone().into()]);
        arguments.extend(["-h".into(), "127.0.0.1".into()]);
        arguments.extend(["-p".into(), port.to_string().into()]);
        // What is lost in a crash of the machine does not matter here; memory and time do.
        for setting in ["fsync=off", "shared_buffers=32MB", "max_connections=60"]
            .iter()
            .chain(settings)
        {
            arguments.extend(["-c".into(), setting.into()]);
        }
        let guard = Guard::start(Start {
            program: command.get_program().into(),
            arguments,
            environment: Vec::new(),
            log: directory.join("log"),
            end: "QUIT",
            remove: directory.clone(),
        });
        // Asked through the socket, which is surely ours, while the port may be another's.
        let ready = || {
            run(Command::new(client_dir(self.major).join("pg_isready"))
                .arg("-q")
                .arg("-h")
                .arg(&directory)
                .args(["-p", &port.to_string()]))
            .code
        };
        let answer = super::poll(PATIENCE, || match guard.is_running() {
            false => Some(false),
            true => (ready() == 0).then_some(true),
        });
        match answer {
            Some(true) => {}
            Some(false) => {
                eprintln!("PostgreSQL {} ended at once:\n{}", self.major, guard.log_tail());
                return None;
            }
            None => panic!("PostgreSQL {} does not answer:\n{}", self.major, guard.log_tail()),
        }
        Some(PostgresServer {
            major: self.major,
            host: "127.0.0.1".to_owned(),
            port,
            user: "postgres".to_owned(),
            password: self.password,
            local: Some(Local { guard, directory }),
        })
    }
}

fn external(major: u32) -> Option<String> {
    std::env::var(format!("LIFEBOAT_TEST_POSTGRES_{major}"))
        .ok()
        .filter(|url| !url.is_empty())
}

/// The directory of a major's server programs, its links resolved: another user runs them.
fn server_dir(major: u32) -> Option<PathBuf> {
    let installed = project().join(format!(".services/postgres/{major}/bin"));
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    [installed, debian]
        .into_iter()
        .filter(|dir| dir.join("postgres").is_file())
        .find_map(|dir| dir.canonicalize().ok())
}

/// The directory of client programs for a server: a client reads servers of its own major and older ones.
pub fn client_dir(major: u32) -> PathBuf {
    (major..=*MAJORS.end())
        .filter_map(server_dir)
        .find(|dir| dir.join("pg_dump").is_file())
        .unwrap_or_else(|| panic!("PostgreSQL clients for {major} are missing: {INSTALL}"))
}

/// The user and group that servers run as when the tests run as root (PostgreSQL refuses to): `postgres`, the
/// user that Debian's package makes.
fn server_user() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").expect("/proc is needed").uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").expect("/etc/passwd can not be read");
    let fields: Vec<&str> = users
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&"postgres"))
        .unwrap_or_else(|| panic!("tests run as root need the user postgres: {INSTALL}"));
    let number = |at: usize| fields.get(at).and_then(|field| field.parse().ok());
    Some((number(2).expect("a user id"), number(3).expect("a group id")))
}

/// A command that runs a server program as the user it may run as.
fn as_server_user(program: &Path) -> Command {
    let Some((user, group)) = server_user() else {
        return Command::new(program);
    };
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={group}"))
        .args(["--clear-groups", "--"])
        .arg(program)
        .current_dir("/");
    command
}
