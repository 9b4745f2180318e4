//! A server that was given to drills, in place of a cluster of their own. It is theirs alone, and empty before and after:
//! a database marks that a drill is under way, so that the next one can remove what a killed one left.

use crate::error::{Error, Kind, Result};
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::postgres::quote::{ident, literal};

/// The database that marks a drill; its comment has the roles that were there before, as JSON.
const MARK: &str = "lifeboat_drill";
/// One drill at a time holds this lock (advisory locks are of a database: of `postgres`).
const LOCK: i64 = 0x006c_6966_6562_6f61;

fn refused(address: &Address, why: &str) -> Error {
    Error::new(
        Kind::DrillCouldNotRun,
        format!("the server of the drill, {}, {why}", address.shown()),
    )
}

/// A server of somebody's, as long as a drill uses it.
pub(super) struct Given {
    /// It holds the lock.
    session: Session,
    pub(super) version: String,
}

impl Given {
    /// Takes the server.
    ///
    /// # Errors
    /// It can not be reached, is of another major version, holds anything, or is the one that was backed up.
    pub(super) async fn take(
        address: &Address,
        major: u32,
        backed_up: Option<&str>,
        databases: &[String],
    ) -> Result<Self> {
        let refuse = |why: String| refused(address, &why);
        let given = Self::reach(address, Some(major), backed_up, databases).await?;
        let sql = format!("SELECT pg_try_advisory_lock({LOCK})");
        let locked = given.session.row("lock the server", &sql, &[]).await?;
        if !value::<bool>(&locked, 0)? {
            return Err(
                refuse("is used by another drill".to_owned()).hint("Run again when that one has ended.")
            );
        }
        // What a drill left that was killed.
        given.clear().await?;
        given.empty(address).await?;
        let sql = "SELECT coalesce(json_agg(rolname), '[]')::text FROM pg_roles";
        let roles: String = value(&given.session.row("list the roles", sql, &[]).await?, 0)?;
        given
            .session
            .run("mark the server", &format!("CREATE DATABASE {MARK}"))
            .await?;
        let comment = format!("COMMENT ON DATABASE {MARK} IS {}", literal(&roles));
        given.session.run("mark the server", &comment).await?;
        Ok(given)
    }

    /// Looks at it and changes nothing; gives its version. One that is marked may hold what the next drill removes.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub(super) async fn examine(
        address: &Address,
        major: Option<u32>,
        backed_up: Option<&str>,
        databases: &[String],
    ) -> Result<String> {
        let given = Self::reach(address, major, backed_up, databases).await?;
        let sql = format!("SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{MARK}')");
        let marked = given.session.row("look for a mark", &sql, &[]).await?;
        if !value::<bool>(&marked, 0)? {
            given.empty(address).await?;
        }
        given.session.close().await;
        Ok(given.version)
    }

    /// A session with it, when it is another server than the one that was backed up, and of the major version.
    async fn reach(
        address: &Address,
        major: Option<u32>,
        backed_up: Option<&str>,
        databases: &[String],
    ) -> Result<Self> {
        let refuse = |why: String| refused(address, &why);
        if let Some(name) = databases
            .iter()
            .find(|name| ["postgres", "template1"].contains(&name.as_str()))
        {
            return Err(refuse(format!(
                "can not get the database {name}, which every server has already"
            ))
            .hint("Take server out of the drill: it makes a cluster of its own then."));
        }
        let session = address.with_database("postgres").connect().await.map_err(|e| {
            let told = refuse("can not be used".to_owned()).because(e.chain());
            match e.hint_text() {
                Some(hint) => told.hint(hint.to_owned()),
                None => told,
            }
        })?;
        let version = session.version().await?;
        if let Some(major) = major.filter(|major| version / 10_000 != *major) {
            return Err(refuse(format!(
                "is of version {}, and the point of version {major}",
                version / 10_000
            ))
            .hint("Give the drill a server of the point's major version."));
        }
        let row = session
            .row(
                "look at the server",
                "SELECT system_identifier::text, current_setting('server_version') FROM pg_control_system()",
                &[],
            )
            .await?;
        if backed_up == Some(value::<String>(&row, 0)?.as_str()) {
            return Err(refuse("is the one that was backed up".to_owned())
                .hint("Give the drill a server of its own, on which nothing else is."));
        }
        let version: String = value(&row, 1)?;
        Ok(Self { session, version })
    }

    async fn empty(&self, address: &Address) -> Result<()> {
        let sql = "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1 LIMIT 1";
        if let Some(row) = self.session.rows("list the databases", sql, &[]).await?.first() {
            let name: String = value(row, 0)?;
            return Err(refused(address, &format!("is not empty: it has the database {name}"))
                .hint("Give the drill a server of its own, on which nothing else is: everything on it is removed afterwards."));
        }
        Ok(())
    }

    /// Removes all that a drill has made, if the server is marked.
    async fn clear(&self) -> Result<()> {
        let sql = format!(
            "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = '{MARK}'"
        );
        let Some(row) = self
            .session
            .rows("look for a mark", &sql, &[])
            .await?
            .into_iter()
            .next()
        else {
            return Ok(());
        };
        let comment: String = value(&row, 0)?;
        let sql = format!(
            "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname NOT IN ('postgres', '{MARK}')"
        );
        // A mark without its list was made just before the end: nothing was restored yet.
        if let Ok(before) = serde_json::from_str::<Vec<String>>(&comment) {
            for row in self.session.rows("list the databases", &sql, &[]).await? {
                let name: String = value(&row, 0)?;
                self.drop_database(&name).await?;
            }
            let roles = self
                .session
                .rows("list the roles", "SELECT rolname::text FROM pg_roles", &[])
                .await?;
            for row in roles {
                let name: String = value(&row, 0)?;
                if !before.contains(&name) && !name.starts_with("pg_") {
                    let name = ident(&name);
                    let sql = format!("DROP OWNED BY {name}; DROP ROLE {name}");
                    self.session.run("drop a role of a drill", &sql).await?;
                }
            }
        }
        self.drop_database(MARK).await
    }

    async fn drop_database(&self, name: &str) -> Result<()> {
        // From 13 on it ends the sessions of others by itself; older servers are of no major that is supported.
        let sql = format!("DROP DATABASE {} WITH (FORCE)", ident(name));
        self.session.run("drop a database of a drill", &sql).await
    }

    /// Gives it back as it was.
    ///
    /// # Errors
    /// Something can not be removed; the next drill tries again.
    pub(super) async fn give_back(self) -> Result<()> {
        self.clear().await?;
        self.session.close().await;
        Ok(())
    }
}
