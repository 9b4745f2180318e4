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

use super::choice::{self, Choice, Documents};
use super::compare::{self, Compared};
use super::files::{read_cluster, read_document, refuse_table_to_directory, to_directory};
use super::inspect::{self, Scope};
use super::prepare;
use super::proof::Recorded;
use super::roles;
use crate::error::{Error, Kind, Result};
use crate::source::directory_target::DirectoryTarget;
use crate::source::postgres::client::{self, Clients, Pipe};
use crate::source::postgres::connect::{Address, Session, interrupted};
use crate::source::postgres::facts::{
    CLUSTER_UNIT, Cluster, Database, DatabaseFacts, FACTS_UNIT, Facts, MARKER_SCHEMA, decode,
};
use crate::source::postgres::quote::{conninfo_database, ident};
use crate::source::postgres::scratch::PostgresScratch;
use crate::source::scratch::{ScratchPlan, ScratchTarget};
use crate::source::{
    Context, Outline, Part, PointContent, RestoreOptions, Restored, RestoredUnit, Restorer, Target, Wanted,
};
use crate::types::UnitName;

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
                let (server, address) = prepare::maintenance(&address).await?;
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

    fn wants(&self, unit: &UnitName) -> Wanted {
        match unit.as_str() {
            CLUSTER_UNIT | FACTS_UNIT => Wanted::Content,
            _ => Wanted::Size,
        }
    }

    fn parts(&self, outline: &Outline, options: &RestoreOptions) -> Result<Vec<Part>> {
        Documents::of(outline)?.parts(outline, options)
    }

    async fn examine_for(
        &self,
        context: &Context,
        outline: &Outline,
        target: &Target,
        options: &RestoreOptions,
    ) -> Result<Vec<String>> {
        let Target::Postgres(url) = target else {
            return Ok(Vec::new());
        };
        let documents = Documents::of(outline)?;
        documents.parts(outline, options)?;
        let address = Address::parse(url)?;
        let client_dir = self.client_dir.as_deref();
        let looked = Looked::at(context, &documents.cluster, &address, options, client_dir).await?;
        if options.only_table.is_none() {
            let mut facts = Vec::new();
            for (database, _) in &looked.databases {
                facts.push(documents.facts_of(&database.name)?);
            }
            choice::refuse_lacking_extensions(&looked.server, looked.version, &facts).await?;
        }
        looked.server.close().await;
        Ok([looked.warnings, looked.roles.map(|r| r.notes).unwrap_or_default()].concat())
    }

    async fn scratch(
        &self,
        context: &Context,
        plan: ScratchPlan,
        outline: &Outline,
    ) -> Result<Box<dyn ScratchTarget>> {
        let documents = Documents::of(outline)?;
        let recorded = Recorded::of(&documents);
        let cluster = documents.cluster;
        let major = cluster.version / 10_000;
        let clients = client::find(self.client_dir.as_deref()).await?;
        client::for_restore(&clients, cluster.dump_major, major)
            .map_err(|e| e.of_kind(Kind::DrillCouldNotRun))?;
        let databases = cluster.databases.into_iter().map(|d| d.name).collect();
        let backed_up = cluster.system_identifier.as_deref();
        let mut started = PostgresScratch::start(context, plan, major, databases, backed_up, clients).await?;
        started.compare_with(recorded);
        Ok(Box::new(started))
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

/// One database to restore.
struct Item {
    recorded: Database,
    /// Its name in the target.
    name: String,
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
    /// Tables go where the server puts them.
    no_tablespaces: bool,
    restored: Restored,
}

/// What is known of a target server before anything is written to it.
struct Looked {
    server: Session,
    address: Address,
    version: u32,
    clients: Clients,
    /// Each with its name in the target.
    databases: Vec<(Database, String)>,
    no_tablespaces: bool,
    /// None, where one table is restored.
    roles: Option<roles::RolePlan>,
    warnings: Vec<String>,
}

impl Looked {
    /// Everything that can be refused is; nothing is written.
    async fn at(
        context: &Context,
        cluster: &Cluster,
        address: &Address,
        options: &RestoreOptions,
        client_dir: Option<&Path>,
    ) -> Result<Self> {
        let Choice {
            databases: chosen,
            roles: wanted,
        } = choice::choose(cluster, address, options)?;
        let (server, address) = prepare::maintenance(address).await?;
        let version = server.version().await?;
        let found = client::find(client_dir).await?;
        let clients = client::for_restore(&found, cluster.dump_major, version / 10_000)?.clone();
        let mut warnings = Vec::new();
        if version / 10_000 < cluster.version / 10_000 {
            warnings.push(format!(
                "the server is older than the one backed up ({})",
                cluster.version_text
            ));
        }
        let mut databases = Vec::new();
        for (recorded, name) in chosen {
            prepare::examine(context, &server, &address, &name).await?;
            databases.push((recorded, name));
        }
        let lacking = prepare::lacking_tablespaces(&server, &cluster.tablespaces).await?;
        if !lacking.is_empty() {
            warnings.push(format!(
                "the target server lacks tablespaces of the source ({}): everything goes into each database's default one; create them first, if that matters",
                lacking.join(", ")
            ));
        }
        let roles = if options.only_table.is_none() {
            let recorded: Vec<&Database> = databases.iter().map(|(d, _)| d).collect();
            Some(roles::plan(&server, version, cluster, &recorded, wanted, options.new_server).await?)
        } else {
            warnings.push(
                "of one table its definition and rows are restored, not its indexes, constraints, defaults from sequences, triggers, owner and privileges"
                    .into(),
            );
            None
        };
        Ok(Self {
            server,
            address,
            version,
            clients,
            databases,
            no_tablespaces: !lacking.is_empty(),
            roles,
            warnings,
        })
    }
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
        let table = options
            .only_table
            .as_deref()
            .map(choice::split_table)
            .transpose()?;
        let looked = Looked::at(context, &cluster, &address, options, client_dir).await?;
        for (_, name) in &looked.databases {
            prepare::lock(&looked.server, name).await?;
        }
        let mut restored = Restored {
            warnings: looked.warnings,
            ..Restored::default()
        };
        if let Some(mut roles) = looked.roles {
            restored.warnings.append(&mut roles.notes);
            restored.warnings.extend(roles.carry_out(&looked.server).await?);
        }
        let items = looked.databases.into_iter().map(|(recorded, name)| {
            let item = Item {
                recorded,
                name,
                created: false,
                marked: false,
                done: false,
            };
            (item.recorded.unit.clone(), item)
        });
        Ok(Self {
            context,
            address: looked.address,
            server: looked.server,
            clients: looked.clients,
            items: items.collect(),
            table,
            no_tablespaces: looked.no_tablespaces,
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
                    true => left_incomplete(self.context, &e, &name),
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
                .map_err(|e| left_incomplete(self.context, &e, &item.name))?;
            self.restored.differences.extend(compared.differences);
            self.restored.warnings.extend(compared.warnings);
        }
        // The lock was held until here.
        self.server.version().await?;
        // All markers go last: while one stands, the same command finds each and starts over.
        for item in self.items.values() {
            let session = self.address.with_database(&item.name).connect().await?;
            prepare::unmark(&session)
                .await
                .map_err(|e| left_incomplete(self.context, &e, &item.name))?;
            session.close().await;
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
        if self.no_tablespaces {
            arguments.push("--no-tablespaces".to_owned());
        }
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

    /// Compares a restored database and sets what belongs to it.
    async fn complete(&self, item: &Item, recorded: &DatabaseFacts, facts: &Facts) -> Result<Compared> {
        self.context
            .progress
            .phase(&format!("comparing {}", item.name), None);
        let session = self.address.with_database(&item.name).connect().await?;
        let scope = Scope {
            only_table: self.table.clone(),
            ..Scope::default()
        };
        let had_public = recorded.schemas.iter().any(|s| s == "public");
        if item.created && self.table.is_none() && !had_public {
            prepare::drop_public(&session).await?;
        }
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
        if !item.created && self.table.is_none() && !had_public && found.schemas.iter().any(|s| s == "public")
        {
            compared.warnings.push(format!(
                "database {:?} was there before: its schema public, which the source has not, was left",
                item.name
            ));
        }
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
        session.close().await;
        Ok(compared)
    }
}

/// The error of a database that was begun: says that it is not whole, and what to do.
fn left_incomplete(context: &Context, e: &Error, name: &str) -> Error {
    let mut hint = format!(
        "Run the same command again when the cause is mended, with --at-point {} if another point is the newest by then: it starts over what is marked.",
        context.run
    );
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
        let mut rest = &chunk[..];
        while !rest.is_empty() {
            let written = tokio::select! {
                biased;
                () = context.cancel.cancelled() => return Err(interrupted()),
                written = stdin.write(rest) => written,
            };
            let taken = match written {
                Ok(taken) => taken,
                // It has ended; its exit status and stderr tell why.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
                    return Ok(Fed { bytes, all: false });
                }
                Err(e) => return Err(Error::failed("pg_restore takes no more input").because(e)),
            };
            if taken == 0 {
                return Ok(Fed { bytes, all: false });
            }
            rest = &rest[taken..];
            bytes += taken as u64;
            context.progress.advance(taken as u64);
        }
    }
    Ok(Fed { bytes, all: true })
}
