//! Putting dumps back: into a directory as files, or into databases through `pg_restore`.
//!
//! A database is not restored in one transaction (a dump with many large objects would not fit the lock table), so a
//! marker schema stands in it from before the first object until the facts were compared. The same restore run again
//! finds its own marker and starts that database over; any other restore is refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

use super::compare::{self, Compared};
use super::inspect::{self, Scope};
use super::prepare::{self, State};
use crate::error::{Error, Result};
use crate::source::directory_target::DirectoryTarget;
use crate::source::postgres::client::{self, Clients, Pipe};
use crate::source::postgres::connect::{Address, Session, interrupted};
use crate::source::postgres::facts::{
    CLUSTER_UNIT, Cluster, DOCUMENT_LIMIT_BYTES, Database, DatabaseFacts, FACTS_UNIT, Facts, MARKER_SCHEMA,
    decode,
};
use crate::source::postgres::quote::{conninfo_database, ident};
use crate::source::{Context, PointContent, RestoreOptions, Restored, RestoredUnit, Restorer, Target};

/// Restores points of kind `postgres-logical`.
#[derive(Clone, Debug, Default)]
pub struct LogicalRestorer {
    client_dir: Option<PathBuf>,
}

impl LogicalRestorer {
    /// Client programs are looked for where this host may have them.
    pub fn new() -> Self {
        Self::default()
    }
    /// Client programs are taken from this directory only.
    #[must_use]
    pub fn with_client_dir(mut self, directory: Option<PathBuf>) -> Self {
        self.client_dir = directory;
        self
    }
}

#[async_trait]
impl Restorer for LogicalRestorer {
    async fn examine(&self, context: &Context, target: &Target, options: &RestoreOptions) -> Result<()> {
        match target {
            Target::Directory(path) => {
                refuse_table_to_directory(options)?;
                DirectoryTarget::examine(context, path)
            }
            Target::Postgres(url) => {
                let address = Address::parse(url)?;
                let server = prepare::maintenance(&address).await?;
                client::find(self.client_dir.as_deref()).await?;
                // Which databases a server is to get is known from the point only; then each is looked at.
                if let Some(name) = address.database.as_deref().filter(|n| *n != "postgres") {
                    prepare::examine(context, &server, &address, name).await?;
                }
                Ok(())
            }
            Target::Bucket(_) => Err(wrong_target()),
        }
    }

    async fn restore(
        &self,
        context: &Context,
        content: &mut dyn PointContent,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Restored> {
        match target {
            Target::Directory(path) => to_directory(context, content, path, options).await,
            Target::Postgres(url) => {
                let address = Address::parse(url)?;
                let mut work =
                    Work::begin(context, content, address, options, self.client_dir.as_deref()).await?;
                work.carry_out(content).await?;
                work.server.close().await;
                Ok(work.restored)
            }
            Target::Bucket(_) => Err(wrong_target()),
        }
    }
}

fn wrong_target() -> Error {
    Error::usage("dumps of Postgres can not be restored into a bucket")
        .hint("Give a directory, or a postgres:// URL.")
}

fn refuse_table_to_directory(options: &RestoreOptions) -> Result<()> {
    if options.only_table.is_none() {
        return Ok(());
    }
    Err(
        Error::usage("one table can not be restored into a directory: a dump is one file").hint(
            "Restore into a database with --only-table, or take the whole dump and use pg_restore --table.",
        ),
    )
}

async fn to_directory(
    context: &Context,
    content: &mut dyn PointContent,
    path: &Path,
    options: &RestoreOptions,
) -> Result<Restored> {
    refuse_table_to_directory(options)?;
    let only = options.only_database.as_deref().map(super::unit_of).transpose()?;
    // What can be refused is, before anything is written.
    let (first, text) = read_cluster(content).await?;
    let cluster: Cluster = decode(CLUSTER_UNIT, &text)?;
    if let Some(name) = &options.only_database {
        named(&cluster, name)?;
    }
    let mut target = DirectoryTarget::open(context, path)?;
    let mut restored = Restored {
        bytes: target.write_unit(&first, &mut Read(Some(text.into()))).await?,
        ..Restored::default()
    };
    while let Some(unit) = content.next().await? {
        let is_dump = unit.name.as_str().starts_with("databases/");
        if is_dump && only.as_ref().is_some_and(|only| unit.name != *only) {
            continue;
        }
        context
            .progress
            .phase(&format!("writing {}", unit.name), Some(unit.size));
        restored.bytes += target.write_unit(&unit, content).await?;
    }
    target.finish().await?;
    Ok(restored)
}

/// The first unit tells of the whole.
async fn read_cluster(content: &mut dyn PointContent) -> Result<(RestoredUnit, Vec<u8>)> {
    match content.next().await? {
        Some(unit) if unit.name.as_str() == CLUSTER_UNIT => {
            let text = read_document(content, &unit).await?;
            Ok((unit, text))
        }
        _ => Err(Error::damaged(format!("the point has no {CLUSTER_UNIT}"))),
    }
}

fn named<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Database> {
    let mut databases = cluster.databases.iter();
    databases.find(|d| d.name == name).ok_or_else(|| {
        let there: Vec<&str> = cluster.databases.iter().map(|d| d.name.as_str()).collect();
        Error::usage(format!("the point has no database {name:?}"))
            .hint(format!("It has: {}. Nothing was written.", there.join(", ")))
    })
}

/// A unit that was read already.
struct Read(Option<bytes::Bytes>);

#[async_trait]
impl PointContent for Read {
    async fn next(&mut self) -> Result<Option<RestoredUnit>> {
        Ok(None)
    }
    async fn read(&mut self) -> Result<Option<bytes::Bytes>> {
        Ok(self.0.take())
    }
}

/// One database to restore.
struct Item {
    recorded: Database,
    /// Its name in the target.
    name: String,
    state: State,
    created: bool,
    /// The marker stands in it.
    marked: bool,
    done: bool,
}

/// A restore into a server.
struct Work<'a> {
    context: &'a Context,
    address: Address,
    server: Session,
    clients: Clients,
    /// By unit name.
    items: BTreeMap<String, Item>,
    table: Option<(String, String)>,
    restored: Restored,
}

impl<'a> Work<'a> {
    /// Everything that can be refused is, before anything is written.
    async fn begin(
        context: &'a Context,
        content: &mut dyn PointContent,
        address: Address,
        options: &RestoreOptions,
        client_dir: Option<&Path>,
    ) -> Result<Self> {
        let cluster: Cluster = decode(CLUSTER_UNIT, &read_cluster(content).await?.1)?;
        let chosen = choose(&cluster, &address, options)?;
        let server = prepare::maintenance(&address).await?;
        let version = server.version().await?;
        let found = client::find(client_dir).await?;
        let clients = client::for_restore(&found, cluster.dump_major, version / 10_000)?.clone();
        let table = options.only_table.as_deref().map(split_table);
        let mut restored = Restored::default();
        if version / 10_000 < cluster.version / 10_000 {
            restored.warnings.push(format!(
                "the server is older than the one backed up ({})",
                cluster.version_text
            ));
        }
        let mut items = BTreeMap::new();
        for (recorded, name) in chosen {
            let state = prepare::examine(context, &server, &address, &name).await?;
            let item = Item {
                recorded,
                name,
                state,
                created: false,
                marked: false,
                done: false,
            };
            items.insert(item.recorded.unit.clone(), item);
        }
        if table.is_none() {
            let databases: Vec<&Database> = items.values().map(|i| &i.recorded).collect();
            prepare::roles(&server, version, &cluster, &databases, &mut restored.warnings).await?;
        } else {
            restored.warnings.push(
                "of one table its definition and rows are restored, not its indexes, constraints, defaults from sequences, triggers, owner and privileges"
                    .into(),
            );
        }
        Ok(Self {
            context,
            address,
            server,
            clients,
            items,
            table,
            restored,
        })
    }

    async fn carry_out(&mut self, content: &mut dyn PointContent) -> Result<()> {
        let mut facts: Option<Facts> = None;
        while let Some(unit) = content.next().await? {
            if self.context.cancel.is_cancelled() {
                return Err(interrupted());
            }
            if unit.name.as_str() == FACTS_UNIT {
                facts = Some(decode(FACTS_UNIT, &read_document(content, &unit).await?)?);
            } else if let Some(mut item) = self.items.remove(unit.name.as_str()) {
                let result = self.database(&mut item, &unit, content).await;
                let (name, marked) = (item.name.clone(), item.marked);
                self.items.insert(unit.name.to_string(), item);
                result.map_err(|e| match marked {
                    true => left_incomplete(&e, &name),
                    false => e.while_doing(format_args!("database {name:?}")),
                })?;
            }
        }
        if let Some(item) = self.items.values().find(|i| !i.done) {
            return Err(Error::damaged(format!("the point has no {}", item.recorded.unit)));
        }
        let facts = facts.ok_or_else(|| Error::damaged(format!("the point has no {FACTS_UNIT}")))?;
        for item in self.items.values() {
            let recorded = facts.databases.iter().find(|d| d.name == item.recorded.name);
            let recorded = recorded.ok_or_else(|| {
                Error::damaged(format!(
                    "{FACTS_UNIT} says nothing of database {:?}",
                    item.recorded.name
                ))
            })?;
            let compared = self
                .complete(item, recorded, &facts)
                .await
                .map_err(|e| left_incomplete(&e, &item.name))?;
            self.restored.differences.extend(compared.differences);
            self.restored.warnings.extend(compared.warnings);
        }
        Ok(())
    }

    /// Feeds one dump to the restoring program.
    async fn database(
        &mut self,
        item: &mut Item,
        unit: &RestoredUnit,
        content: &mut dyn PointContent,
    ) -> Result<()> {
        let name = item.name.clone();
        self.context
            .progress
            .phase(&format!("restoring {name}"), Some(unit.size));
        item.created = prepare::database(
            self.context,
            &self.server,
            &self.address,
            &name,
            &item.state,
            &item.recorded,
            &mut self.restored.warnings,
        )
        .await?;
        item.marked = true;
        let mut arguments = vec![
            "--format=custom".to_owned(),
            "--exit-on-error".to_owned(),
            "--no-password".to_owned(),
            format!("--dbname={}", conninfo_database(&name)),
        ];
        let address = self.address.with_database(&name);
        if let Some((schema, table)) = &self.table {
            arguments.push("--no-owner".to_owned());
            arguments.push("--no-privileges".to_owned());
            arguments.push(format!("--schema={schema}"));
            arguments.push(format!("--table={table}"));
            let session = address.connect().await?;
            let sql = format!("CREATE SCHEMA IF NOT EXISTS {}", ident(schema));
            session.run("create the table's schema", &sql).await?;
            session.close().await;
        }
        let cancel = &self.context.cancel;
        let (child, _, stdin) = client::start(
            &self.clients,
            "pg_restore",
            &arguments,
            &address,
            Pipe::In,
            cancel,
        )?;
        let stdin = stdin.ok_or_else(|| Error::failed("pg_restore has no stdin"))?;
        let fed = feed(self.context, content, stdin).await?;
        let told = child.finish().await?;
        // A program that ended well without reading all of it, in spite of a whole dump, was not asked for all.
        if !fed.all && self.table.is_none() {
            return Err(Error::failed("pg_restore did not read the whole dump"));
        }
        if fed.all && fed.bytes != unit.size {
            return Err(Error::damaged(format!(
                "{} has {} bytes, recorded are {}",
                unit.name, fed.bytes, unit.size
            )));
        }
        self.restored.bytes += fed.bytes;
        self.restored
            .warnings
            .extend(told.into_iter().map(|line| format!("database {name:?}: {line}")));
        item.done = true;
        Ok(())
    }

    /// Compares a restored database, sets what belongs to it, and takes the marker away.
    async fn complete(&self, item: &Item, recorded: &DatabaseFacts, facts: &Facts) -> Result<Compared> {
        self.context
            .progress
            .phase(&format!("comparing {}", item.name), None);
        let session = self.address.with_database(&item.name).connect().await?;
        let scope = Scope {
            only_table: self.table.clone(),
            ..Scope::default()
        };
        session
            .run(
                "begin the comparison",
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
            )
            .await?;
        let found = inspect::facts(&session, &item.name, &scope, &self.context.cancel).await?;
        session.run("end the comparison", "COMMIT").await?;
        let mut compared = match &self.table {
            Some((schema, table)) => compare::table(recorded, &found, schema, table),
            None => compare::database(recorded, &found),
        };
        if !facts.excluded.is_empty() {
            compared.warnings.push(format!(
                "database {:?}: the policy left the rows of tables out of the backup: {}",
                item.recorded.name,
                facts.excluded.join(", ")
            ));
        }
        if item.created && self.table.is_none() {
            prepare::properties(&self.server, &item.name, &item.recorded).await?;
        } else if item.recorded.has_properties() && self.table.is_none() {
            compared.warnings.push(format!(
                "database {:?} was there before: its owner, privileges and settings were left as they are",
                item.name
            ));
        }
        prepare::unmark(&session).await?;
        session.close().await;
        Ok(compared)
    }
}

/// Which databases go where.
fn choose(cluster: &Cluster, address: &Address, options: &RestoreOptions) -> Result<Vec<(Database, String)>> {
    let names = || {
        let list: Vec<String> = cluster
            .databases
            .iter()
            .map(|d| format!("{:?}", d.name))
            .collect();
        list.join(", ")
    };
    let chosen: Vec<Database> = match &options.only_database {
        Some(only) => cluster
            .databases
            .iter()
            .filter(|d| d.name == *only)
            .cloned()
            .collect(),
        None => cluster.databases.clone(),
    };
    match (chosen.as_slice(), &address.database) {
        ([], _) => Err(Error::usage(format!(
            "the point has no database {:?}; it has {}",
            options.only_database.as_deref().unwrap_or_default(),
            names()
        ))),
        ([one], Some(target)) => Ok(vec![(one.clone(), target.clone())]),
        ([_, _, ..], Some(target)) if target != "postgres" => Err(Error::usage(format!(
            "the point has several databases ({}) and the target is one, {target:?}",
            names()
        ))
        .hint("Give a URL without a database, so that they keep their names, or choose one with --only-database.")),
        (several, _) if options.only_table.is_some() && several.len() > 1 => Err(Error::usage(format!(
            "the point has several databases ({}): whose table?",
            names()
        ))
        .hint("Choose one with --only-database.")),
        (all, _) => Ok(all.iter().map(|d| (d.clone(), d.name.clone())).collect()),
    }
}

/// `table` is in `public`; `schema.table` says where; double quotes keep dots and quotes inside a name.
fn split_table(text: &str) -> (String, String) {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = parts.len() - 1;
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => parts[last].push('"'),
            '"' => quoted = !quoted,
            '.' if !quoted && parts.len() == 1 => parts.push(String::new()),
            _ => parts[last].push(c),
        }
    }
    let table = parts.pop().unwrap_or_default();
    (parts.pop().unwrap_or_else(|| "public".into()), table)
}

/// The error of a database that was begun: says that it is not whole, and what to do.
fn left_incomplete(e: &Error, name: &str) -> Error {
    let mut hint =
        String::from("Run the same command again when the cause is mended: it starts this database over.");
    if let Some(first) = e.hint_text() {
        hint = format!("{first} {hint}");
    }
    let told = e.chain();
    let cause = told
        .strip_prefix(e.message())
        .unwrap_or_default()
        .trim_start_matches(": ")
        .to_owned();
    let error = Error::new(
        e.kind(),
        format!(
            "database {name:?} is left incomplete, marked by its schema {MARKER_SCHEMA}: {}",
            e.message()
        ),
    )
    .hint(hint);
    if cause.is_empty() {
        error
    } else {
        error.because(cause)
    }
}

/// How much a program took.
struct Fed {
    bytes: u64,
    /// It read to the end.
    all: bool,
}

/// Writes the current unit to a program, as fast as it reads.
async fn feed(context: &Context, content: &mut dyn PointContent, mut stdin: ChildStdin) -> Result<Fed> {
    let mut bytes = 0u64;
    loop {
        let next = tokio::select! {
            biased;
            () = context.cancel.cancelled() => return Err(interrupted()),
            next = content.read() => next?,
        };
        let Some(chunk) = next else { break };
        let written = tokio::select! {
            biased;
            () = context.cancel.cancelled() => return Err(interrupted()),
            written = stdin.write_all(&chunk) => written,
        };
        if let Err(e) = written {
            if e.kind() == std::io::ErrorKind::BrokenPipe {
                // It has ended; its exit status and stderr tell why.
                return Ok(Fed { bytes, all: false });
            }
            return Err(Error::failed("pg_restore takes no more input").because(e));
        }
        bytes += chunk.len() as u64;
        context.progress.advance(chunk.len() as u64);
    }
    Ok(Fed { bytes, all: true })
}

/// A small unit as a whole.
async fn read_document(content: &mut dyn PointContent, unit: &RestoredUnit) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(bytes) = content.read().await? {
        if (text.len() + bytes.len()) as u64 > DOCUMENT_LIMIT_BYTES {
            return Err(Error::damaged(format!("{} is larger than it can be", unit.name)));
        }
        text.extend_from_slice(&bytes);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_with_or_without_a_schema() {
        let split = |text: &str| split_table(text);
        assert_eq!(split("t"), ("public".into(), "t".into()));
        assert_eq!(split("s.t"), ("s".into(), "t".into()));
        assert_eq!(split("\"a.b\".\"c\"\"d\""), ("a.b".into(), "c\"d".into()));
    }

    #[test]
    fn an_error_of_a_begun_database_says_that_it_is_incomplete() {
        let e = left_incomplete(&Error::failed("x").hint("Do it.").because("deep"), "d");
        assert!(e.message().contains(MARKER_SCHEMA) && e.chain().ends_with("deep"));
        assert!(e.hint_text().unwrap().starts_with("Do it."));
    }
}
