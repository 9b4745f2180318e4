//! Logical backups: one dump per database, all read in exported snapshots, with the facts that a restore is compared with.

mod capture;
mod check;
mod choice;
mod clear;
mod compare;
mod drill;
mod files;
mod inspect;
mod prepare;
pub(super) mod proof;
mod restore;
mod roles;

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;

pub use restore::LogicalRestorer;

use self::inspect::Listed;
use crate::clock::World;
use crate::error::{Error, Result};
use crate::policy::model::PostgresPolicy;
use crate::secret::SecretText;
use crate::source::postgres::client;
use crate::source::postgres::connect::{Address, Session, interrupted};
use crate::source::postgres::quote::matches;
use crate::source::{Capture, Context, DrillNeeds, DrillReady, Finding, Source};
use crate::types::UnitName;

/// How long a dump waits for a table that another session has locked. Waiting for ever would look like a hang, and
/// everything that wants the table later waits behind us.
const LOCK_WAIT: Duration = Duration::from_secs(300);

/// What the policy says about a logical source.
#[derive(Clone, Debug)]
pub(super) struct LogicalSettings {
    databases: Vec<String>,
    exclude: Vec<String>,
    client_dir: Option<PathBuf>,
    lock_wait: Duration,
}

/// Databases of one Postgres server, backed up as dumps.
#[derive(Debug)]
pub struct PostgresSource {
    settings: LogicalSettings,
    url: SecretText,
}

impl PostgresSource {
    /// A source from its policy and its `postgres://` URL, which may hold a password. Nothing is tried yet: a bad URL
    /// shows in `check` and `capture`.
    pub fn new(policy: &PostgresPolicy, url: SecretText) -> Self {
        Self {
            settings: LogicalSettings {
                databases: policy.databases.clone(),
                exclude: policy.exclude.clone(),
                client_dir: policy.client_dir.clone(),
                lock_wait: LOCK_WAIT,
            },
            url,
        }
    }

    /// Waits this long for a locked table (default: 5 minutes), then the run fails and names it.
    #[must_use]
    pub fn with_lock_wait(mut self, limit: Duration) -> Self {
        self.settings.lock_wait = limit;
        self
    }
}

#[async_trait]
impl Source for PostgresSource {
    async fn check(&self, _world: &World) -> Vec<Finding> {
        check::check(&self.url, &self.settings).await
    }

    async fn check_drill(&self, needs: &DrillNeeds<'_>) -> Result<DrillReady, Finding> {
        drill::check(&self.url, &self.settings, needs).await
    }

    async fn capture(&self, context: Context) -> Result<Box<dyn Capture>> {
        let cancel = context.cancel.clone();
        let begin = async {
            let address = Address::parse(&self.url)?;
            let session = maintenance(&address).await?;
            let version = session.version().await?;
            let found = client::find(self.settings.client_dir.as_deref()).await?;
            let clients = client::for_dump(&found, version / 10_000)?.clone();
            let settings = self.settings.clone();
            capture::LogicalCapture::begin(context, address, session, clients, settings).await
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(interrupted()),
            capture = begin => Ok(Box::new(capture?)),
        }
    }
}

/// A session for the server as a whole: on the URL's database, else on one that most servers have.
async fn maintenance(address: &Address) -> Result<Session> {
    match address.connect().await {
        Err(first) if address.database.is_none() && first.message().contains("no database") => {
            // The first error tells more than that there is no template1 either.
            address
                .with_database("template1")
                .connect()
                .await
                .map_err(|_| first)
        }
        result => result,
    }
}

/// The databases that the policy and the URL choose.
///
/// # Errors
/// None, or one that is named is not there.
async fn chosen(session: &Session, address: &Address, settings: &LogicalSettings) -> Result<Vec<Listed>> {
    let version = session.version().await?;
    let mut listed = inspect::databases(session, version).await?;
    let patterns = &settings.databases;
    if patterns.is_empty() {
        if let Some(name) = &address.database {
            listed.retain(|l| l.database.name == *name);
        }
    } else {
        for pattern in patterns.iter().filter(|p| *p != "*") {
            if !listed.iter().any(|l| matches(pattern, &l.database.name)) {
                return Err(
                    Error::failed(format!("no database of {} matches {pattern:?}", address.shown()))
                        .hint("Correct the source's databases; templates and databases that allow no connections are never taken."),
                );
            }
        }
        listed.retain(|l| patterns.iter().any(|p| matches(p, &l.database.name)));
    }
    if listed.is_empty() {
        return Err(
            Error::failed(format!("{} has no database to back up", address.shown()))
                .hint("Templates and databases that allow no connections are never taken."),
        );
    }
    Ok(listed)
}

/// Databases that the policy and the URL choose and that are not backed up nevertheless: a sentence each.
async fn left_out(session: &Session, address: &Address, settings: &LogicalSettings) -> Result<Vec<String>> {
    let patterns = &settings.databases;
    let chosen = |name: &str| match (patterns.as_slice(), &address.database) {
        ([], Some(only)) => only == name,
        ([], None) => true,
        (patterns, _) => patterns.iter().any(|p| matches(p, name)),
    };
    let all = inspect::never_taken(session).await?.into_iter();
    let told = all
        .filter(|(name, _)| chosen(name))
        .map(|(name, why)| format!("database {name:?} is not backed up: {why}"));
    Ok(told.collect())
}

/// What makes such a database one that is backed up.
const LEFT_OUT_HINT: &str = "ALTER DATABASE … IS_TEMPLATE false ALLOW_CONNECTIONS true, if it is to be backed up; else leave it out of the source's databases.";

/// The unit of a database: its name, with everything that is no plain part of a file name percent-encoded.
fn unit_of(database: &str) -> Result<UnitName> {
    use std::fmt::Write as _;
    let mut name = String::from("databases/");
    for c in database.chars() {
        if c == '/' || c == '%' || c == '\\' || c.is_control() {
            for b in c.to_string().bytes() {
                // Writing to a String can not fail.
                let _ = write!(name, "%{b:02X}");
            }
        } else {
            name.push(c);
        }
    }
    name.push_str(".dump");
    UnitName::from_bytes(name.as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_of_odd_names() {
        let path = |name: &str| unit_of(name).unwrap().to_path().to_string_lossy().into_owned();
        assert_eq!(path("shop"), "databases/shop.dump");
        assert_eq!(path("../../etc"), "databases/..%2F..%2Fetc.dump");
        assert_eq!(path(".."), "databases/...dump");
        assert_eq!(path("a\n%b"), "databases/a%0A%25b.dump");
    }

    proptest! {
        #[test]
        fn every_database_has_its_own_unit(a in "[^\0]{1,20}", b in "[^\0]{1,20}") {
            let (one, other) = (unit_of(&a).unwrap(), unit_of(&b).unwrap());
            prop_assert_eq!(a == b, one == other);
            prop_assert_eq!(one.to_path().components().count(), 2);
        }
    }
}
