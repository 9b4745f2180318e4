//! Where a server is and how to talk to it: the URL, our own sessions, and the environment of client programs.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::tls::{self, SslMode};
use super::value::causes;
pub(crate) use super::value::{instant, value};
use crate::error::{Error, Kind, Result};
use crate::secret::SecretText;

/// How long a connection may take; a server that takes longer is as good as none.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);

/// A parsed `postgres://` URL. Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    /// A host name, an IP address, or the directory of a Unix socket (starts with `/`).
    pub(crate) host: String,
    /// TCP port, or the number in the socket's name.
    pub(crate) port: u16,
    /// Role.
    pub(crate) user: String,
    /// Password, if the URL has one.
    pub(crate) password: Option<SecretText>,
    /// Database, if the URL has one.
    pub(crate) database: Option<String>,
    /// How TLS is used.
    pub(crate) ssl_mode: SslMode,
    root_certificate: Option<PathBuf>,
    client_certificate: Option<(PathBuf, PathBuf)>,
    options: Option<String>,
}

impl Address {
    /// Parses `postgres://[user[:password]@][host][:port][/database][?parameters]`.
    ///
    /// # Errors
    /// What is wrong with it, never showing the URL itself: it may hold a password.
    pub(crate) fn parse(url: &SecretText) -> Result<Self> {
        let text = url.expose();
        let rest = text
            .strip_prefix("postgres://")
            .or_else(|| text.strip_prefix("postgresql://"))
            .ok_or_else(|| bad("it does not start with postgres://"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        // The place would begin inside of a password, and then be told in messages.
        if path.contains('@') || query.contains('@') {
            return Err(bad(
                "an @ stands behind its host: a /, ? or @ in a password is not percent-encoded",
            ));
        }
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(login), place),
            None => (None, authority),
        };
        let mut draft = Draft::default();
        if let Some(login) = login {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            draft.set("user", decode(user)?)?;
            if let Some(password) = password {
                draft.set("password", decode(password)?)?;
            }
        }
        draft.place(place)?;
        draft.set("dbname", decode(path)?)?;
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| bad("a parameter has no value"))?;
            draft.set(&decode(key)?, decode(value)?)?;
        }
        draft.finish()
    }

    /// The same server, another database.
    pub(crate) fn with_database(&self, database: &str) -> Self {
        Self {
            database: Some(database.to_owned()),
            ..self.clone()
        }
    }

    /// The same, with one more option for the server's sessions.
    pub(crate) fn with_option(&self, option: &str) -> Self {
        let options = match &self.options {
            Some(own) => format!("{own} {option}"),
            None => option.to_owned(),
        };
        Self {
            options: Some(options),
            ..self.clone()
        }
    }

    /// The database that it names, if it does.
    pub(crate) fn database(&self) -> Option<&str> {
        self.database.as_deref()
    }
    /// For messages: no password, no parameters.
    pub(crate) fn shown(&self) -> String {
        if self.host.starts_with('/') {
            format!("{}@{}/.s.PGSQL.{}", self.user, self.host, self.port)
        } else {
            format!("{}@{}:{}", self.user, self.host, self.port)
        }
    }

    /// The environment that makes a client program connect here, without anything in its arguments.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        let mut list = vec![
            ("PGHOST", self.host.clone()),
            ("PGPORT", self.port.to_string()),
            ("PGUSER", self.user.clone()),
            ("PGAPPNAME", "lifeboat".into()),
            ("PGCONNECT_TIMEOUT", CONNECT_LIMIT.as_secs().to_string()),
            ("PGSSLMODE", self.effective_mode().name().into()),
        ];
        let path = |p: &PathBuf| p.to_string_lossy().into_owned();
        // Without one, no program may find another in the user's home: the URL alone decides.
        let root = self
            .root_certificate
            .as_ref()
            .map_or_else(|| "/nonexistent/root.crt".into(), path);
        list.push(("PGSSLROOTCERT", root));
        list.push(("PGGSSENCMODE", "disable".into()));
        if let Some((certificate, key)) = &self.client_certificate {
            list.push(("PGSSLCERT", path(certificate)));
            list.push(("PGSSLKEY", path(key)));
        }
        if let Some(password) = &self.password {
            list.push(("PGPASSWORD", password.expose().to_owned()));
        }
        if let Some(options) = &self.options {
            list.push(("PGOPTIONS", options.clone()));
        }
        if let Some(database) = &self.database {
            list.push(("PGDATABASE", database.clone()));
        }
        list
    }

    /// Opens a session on the address's database (without one: `postgres`), with all time limits of the server off.
    ///
    /// # Errors
    /// Each reason in its own words, with what to do.
    pub(crate) async fn connect(&self) -> Result<Session> {
        let database = self.database.as_deref().unwrap_or("postgres");
        let mut config = tokio_postgres::Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .user(&self.user)
            .dbname(database)
            .application_name("lifeboat")
            .connect_timeout(CONNECT_LIMIT)
            // A session may be silent for hours while a dump runs: gateways must not forget it.
            .keepalives_idle(Duration::from_secs(60))
            // And a peer that is gone must be noticed.
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(6)
            .tcp_user_timeout(Duration::from_secs(120));
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        if let Some(options) = &self.options {
            config.options(options);
        }
        config.ssl_mode(match self.ssl_mode {
            SslMode::Disable => tokio_postgres::config::SslMode::Disable,
            SslMode::Prefer => tokio_postgres::config::SslMode::Prefer,
            _ => tokio_postgres::config::SslMode::Require,
        });
        let plain = self.effective_mode() == SslMode::Disable;
        let connecting = async {
            if plain {
                config.ssl_mode(tokio_postgres::config::SslMode::Disable);
                let (client, connection) = config.connect(NoTls).await.map_err(|e| self.explain(&e))?;
                Ok::<Session, Error>(Session::new(client, connection, self, None))
            } else {
                let client_pair = self
                    .client_certificate
                    .as_ref()
                    .map(|(c, k)| (c.as_path(), k.as_path()));
                let tls = tls::connector(self.ssl_mode, self.root_certificate.as_deref(), client_pair)?;
                let (client, connection) = config.connect(tls.clone()).await.map_err(|e| self.explain(&e))?;
                Ok(Session::new(client, connection, self, Some(tls)))
            }
        };
        let session = tokio::time::timeout(CONNECT_LIMIT * 2, connecting)
            .await
            .map_err(|_| self.unreachable("it does not answer"))??;
        session.set_up().await?;
        Ok(session)
    }

    /// There is no TLS over Unix sockets, whatever the mode: libpq does the same.
    fn effective_mode(&self) -> SslMode {
        if self.host.starts_with('/') {
            SslMode::Disable
        } else {
            self.ssl_mode
        }
    }

    fn unreachable(&self, why: impl Into<String>) -> Error {
        Error::failed(format!("no Postgres server answers at {}", self.shown()))
            .hint("Check host and port in the URL, and that the server runs and listens there.")
            .because(why.into())
    }

    /// A failed connection in the operator's words.
    fn explain(&self, e: &tokio_postgres::Error) -> Error {
        let database = self.database.as_deref().unwrap_or("postgres");
        if let Some(db) = e.as_db_error() {
            let told = db.message().to_owned();
            let code = db.code();
            let (what, hint) = if *code == SqlState::INVALID_PASSWORD {
                (
                    format!("the password for {} was refused", self.shown()),
                    "Correct the password where it comes from: the URL's secret, or PGPASSWORD for a --to without one.",
                )
            } else if *code == SqlState::INVALID_AUTHORIZATION_SPECIFICATION {
                (
                    format!("{} may not log in", self.shown()),
                    "Check the role, and the server's pg_hba.conf.",
                )
            } else if *code == SqlState::INVALID_CATALOG_NAME {
                (
                    format!("there is no database {database:?} at {}", self.shown()),
                    "Correct the database in the URL.",
                )
            } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
                (
                    format!("{} may not connect to database {database:?}", self.shown()),
                    "Grant CONNECT on the database to the role.",
                )
            } else if *code == SqlState::TOO_MANY_CONNECTIONS {
                (
                    format!("{} takes no more connections", self.shown()),
                    "Raise max_connections; a run needs one session and one dump per database.",
                )
            } else {
                (
                    format!("{} refused the connection", self.shown()),
                    "The server's log says more.",
                )
            };
            return Error::failed(what).hint(hint).because(told);
        }
        let told = causes(e);
        if e.to_string().contains("TLS") {
            let hint = if told.contains("does not support TLS") {
                "Turn TLS on at the server, or choose sslmode=prefer or disable."
            } else {
                "Check sslmode and sslrootcert in the URL against the server's certificate."
            };
            return Error::failed(format!("TLS with {} failed", self.shown()))
                .hint(hint)
                .because(told);
        }
        if told.contains("password missing") {
            return Error::failed(format!("{} wants a password and the URL has none", self.shown()))
                .hint("Put the password into the URL's secret; with --to, give the URL as env:NAME or file:PATH, or set PGPASSWORD.");
        }
        self.unreachable(told)
    }
}

fn bad(why: impl std::fmt::Display) -> Error {
    Error::usage(format!("the connection URL can not be used: {why}"))
        .hint("It is postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full&sslrootcert=FILE; percent-encode odd characters.")
}

fn decode(text: &str) -> Result<String> {
    let mut raw = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b != b'%' {
            raw.push(b);
            continue;
        }
        let mut digit = || {
            bytes
                .next()
                .and_then(|d| char::from(d).to_digit(16))
                .ok_or_else(|| bad("a % is not followed by two hex digits"))
        };
        let value = digit()? * 16 + digit()?;
        raw.push(u8::try_from(value).unwrap_or_default());
    }
    if raw.contains(&0) {
        return Err(bad("it holds a NUL"));
    }
    String::from_utf8(raw).map_err(|_| bad("it is not UTF-8"))
}

#[derive(Default)]
struct Draft {
    host: Option<String>,
    port: Option<u16>,
    user: Option<String>,
    password: Option<SecretText>,
    database: Option<String>,
    ssl_mode: Option<SslMode>,
    root: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    options: Option<String>,
}

impl Draft {
    fn place(&mut self, place: &str) -> Result<()> {
        if place.contains(',') {
            return Err(bad("it names several hosts; give the one to back up"));
        }
        let (host, port) = if let Some(rest) = place.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or_else(|| bad("a ] is missing"))?;
            (host, after.strip_prefix(':').unwrap_or(after))
        } else {
            place.rsplit_once(':').unwrap_or((place, ""))
        };
        self.set("host", decode(host)?)?;
        self.set("port", decode(port)?)
    }

    /// Empty values stand for the default, as with libpq.
    fn set(&mut self, key: &str, value: String) -> Result<()> {
        if value.is_empty() {
            return Ok(());
        }
        match key {
            "host" => self.host = Some(value),
            "port" => self.port = Some(value.parse().map_err(|_| bad("the port is not a number"))?),
            "user" => self.user = Some(value),
            "password" => self.password = Some(SecretText::new(value)),
            "dbname" => self.database = Some(value),
            "sslmode" => {
                self.ssl_mode = Some(SslMode::parse(&value).ok_or_else(|| {
                    bad("sslmode is not one of disable, prefer, require, verify-ca, verify-full")
                })?);
            }
            "sslrootcert" if value == "system" => self.root = Some(tls::system_roots()?),
            "sslrootcert" => self.root = Some(value.into()),
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "options" => self.options = Some(value),
            // Ours are fixed; these do no harm.
            "application_name" | "connect_timeout" => {}
            _ => return Err(bad(format_args!("the parameter {key:?} is not known"))),
        }
        Ok(())
    }

    fn finish(self) -> Result<Address> {
        let user = self
            .user
            .or_else(|| std::env::var("USER").ok().filter(|u| !u.is_empty()))
            .ok_or_else(|| bad("it names no user"))?;
        let client_certificate = match (self.certificate, self.key) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(bad("sslcert and sslkey go together")),
        };
        Ok(Address {
            host: self.host.unwrap_or_else(|| "localhost".into()),
            port: self.port.unwrap_or(5432),
            user,
            password: self.password,
            database: self.database,
            ssl_mode: self.ssl_mode.unwrap_or(SslMode::Prefer),
            root_certificate: self.root,
            client_certificate,
            options: self.options,
        })
    }
}

/// A session with its connection task; dropping it ends both.
#[derive(Debug)]
pub(crate) struct Session {
    client: Client,
    task: AbortOnDrop,
    shown: String,
    tls: TlsForCancel,
}

#[derive(Debug)]
struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct TlsForCancel(Option<tokio_postgres_rustls::MakeRustlsConnect>);

impl std::fmt::Debug for TlsForCancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TLS")
    }
}

impl Session {
    fn new<S, T>(
        client: Client,
        connection: tokio_postgres::Connection<S, T>,
        address: &Address,
        tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
    ) -> Self
    where
        tokio_postgres::Connection<S, T>: Future<Output = Result<(), tokio_postgres::Error>> + Send + 'static,
    {
        let driver = async move {
            // How the connection ended shows at the next query.
            if let Err(e) = connection.await {
                tracing::debug!(error = %causes(&e), "a Postgres session ended");
            }
        };
        let task = tokio::spawn(driver.in_current_span());
        Self {
            client,
            task: AbortOnDrop(task),
            shown: address.shown(),
            tls: TlsForCancel(tls),
        }
    }

    /// Ends the session and waits until the server was told, so that nothing of it is in the way afterwards.
    pub(crate) async fn close(self) {
        let Self { client, mut task, .. } = self;
        drop(client);
        // One that does not end by itself is cut.
        if tokio::time::timeout(Duration::from_secs(5), &mut task.0)
            .await
            .is_err()
        {
            tracing::debug!("a Postgres session did not end by itself");
        }
    }

    async fn set_up(&self) -> Result<()> {
        self.run(
            "set the session up",
            "SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
             SET default_transaction_read_only = off; \
             SET client_encoding = 'UTF8'; SET standard_conforming_strings = on; SET row_security = off; \
             SET datestyle = 'ISO'; SET quote_all_identifiers = off; SET search_path = pg_catalog",
        )
        .await?;
        let version = self.version().await?;
        if version >= 140_000 {
            self.run("set the session up", "SET idle_session_timeout = 0")
                .await?;
        }
        if version >= 170_000 {
            self.run("set the session up", "SET transaction_timeout = 0")
                .await?;
        }
        Ok(())
    }

    /// Runs statements without results.
    ///
    /// # Errors
    /// What the server says, after what was tried.
    pub(crate) async fn run(&self, doing: &str, sql: &str) -> Result<()> {
        self.client
            .batch_execute(sql)
            .await
            .map_err(|e| self.failed(doing, &e))
    }

    /// The rows of a query.
    ///
    /// # Errors
    /// What the server says, after what was tried.
    pub(crate) async fn rows(
        &self,
        doing: &str,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<Vec<tokio_postgres::Row>> {
        self.client
            .query(sql, params)
            .await
            .map_err(|e| self.failed(doing, &e))
    }

    /// The only row of a query.
    ///
    /// # Errors
    /// What the server says, after what was tried.
    pub(crate) async fn row(
        &self,
        doing: &str,
        sql: &str,
        params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
    ) -> Result<tokio_postgres::Row> {
        self.client
            .query_one(sql, params)
            .await
            .map_err(|e| self.failed(doing, &e))
    }

    /// As [`Session::rows`], but the server is told to stop when the work is cancelled.
    ///
    /// # Errors
    /// What the server says, or the interrupt.
    pub(crate) async fn rows_unless(
        &self,
        cancel: &CancellationToken,
        doing: &str,
        sql: &str,
    ) -> Result<Vec<tokio_postgres::Row>> {
        tokio::select! {
            biased;
            () = cancel.cancelled() => {
                self.stop().await;
                Err(interrupted())
            }
            rows = self.rows(doing, sql, &[]) => rows,
        }
    }

    /// Asks the server to end what this session is doing; if it does not hear it, closing the session will do.
    pub(crate) async fn stop(&self) {
        let token = self.client.cancel_token();
        let asked = async {
            match &self.tls.0 {
                Some(tls) => token.cancel_query(tls.clone()).await,
                None => token.cancel_query(NoTls).await,
            }
        };
        if let Ok(Err(e)) = tokio::time::timeout(Duration::from_secs(5), asked).await {
            tracing::debug!(error = %causes(&e), "a query could not be cancelled");
        }
    }

    /// `server_version_num`.
    ///
    /// # Errors
    /// The session is gone.
    pub(crate) async fn version(&self) -> Result<u32> {
        let row = self
            .row(
                "ask for the server's version",
                "SELECT current_setting('server_version_num')::int4",
                &[],
            )
            .await?;
        Ok(u32::try_from(value::<i32>(&row, 0)?).unwrap_or_default())
    }

    pub(crate) fn failed(&self, doing: &str, e: &tokio_postgres::Error) -> Error {
        let told = match e.as_db_error() {
            Some(db) => match db.detail() {
                Some(detail) => format!("{} ({detail})", db.message()),
                None => db.message().to_owned(),
            },
            None => causes(e),
        };
        let mut error = Error::failed(format!("could not {doing} at {}", self.shown)).because(told);
        if let Some(code) = e.code() {
            if *code == SqlState::LOCK_NOT_AVAILABLE {
                error = error.hint("Another session holds a lock on a table for long; pg_locks tells who.");
            } else if *code == SqlState::INSUFFICIENT_PRIVILEGE {
                error =
                    error.hint("Grant the role what it needs (for dumps: pg_read_all_data), or use another.");
            }
        } else if e.is_closed() || self.client.is_closed() {
            error = error.hint("The connection was cut: see the server's log, and what is between.");
        }
        error
    }
}

impl Deref for Session {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

/// The error of work that was cancelled.
pub(crate) fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted")
}

#[cfg(test)]
mod tests;
