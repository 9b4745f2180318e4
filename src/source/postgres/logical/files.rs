//! A point as files in a directory: its dumps, and what belongs to them.

use std::path::Path;

use async_trait::async_trait;

use super::choice;
use crate::error::{Error, Result};
use crate::source::directory_target::DirectoryTarget;
use crate::source::postgres::facts::{
    CLUSTER_UNIT, Cluster, DOCUMENT_LIMIT_BYTES, Database, GLOBALS_UNIT, decode,
};
use crate::source::{Context, PointContent, RestoreOptions, Restored, RestoredUnit};

pub(super) fn refuse_table_to_directory(options: &RestoreOptions) -> Result<()> {
    if options.only_table.is_none() {
        return Ok(());
    }
    Err(
        Error::usage("one table can not be restored into a directory: a dump is one file").hint(
            "Restore into a database with --only-table, or take the whole dump and use pg_restore --table.",
        ),
    )
}

pub(super) async fn to_directory(
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
        choice::named(&cluster, name)?;
    }
    let chosen = cluster
        .databases
        .iter()
        .filter(|d| options.only_database.as_ref().is_none_or(|only| d.name == *only));
    let next_steps = next_steps(path, chosen)?;
    let mut target = DirectoryTarget::open(context, path)?;
    let mut restored = Restored {
        next_steps,
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

/// How the files become databases, as commands for a shell.
fn next_steps<'a>(path: &Path, databases: impl Iterator<Item = &'a Database>) -> Result<Vec<String>> {
    let quoted = |below: &Path| format!("'{}'", path.join(below).to_string_lossy().replace('\'', "'\\''"));
    let mut steps = vec![format!(
        "psql -d postgres -f {}  # the roles; read it first: it sets the passwords of roles that exist, too",
        quoted(Path::new(GLOBALS_UNIT))
    )];
    for database in databases {
        let dump = super::unit_of(&database.name)?.to_path();
        // This one is there on every server.
        let create = if database.name == "postgres" {
            ""
        } else {
            "--create "
        };
        steps.push(format!("pg_restore {create}-d postgres {}", quoted(&dump)));
    }
    Ok(steps)
}

/// The first unit tells of the whole.
pub(super) async fn read_cluster(content: &mut dyn PointContent) -> Result<(RestoredUnit, Vec<u8>)> {
    match content.next().await? {
        Some(unit) if unit.name.as_str() == CLUSTER_UNIT => {
            let text = read_document(content, &unit).await?;
            Ok((unit, text))
        }
        _ => Err(Error::damaged(format!("the point has no {CLUSTER_UNIT}"))),
    }
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

/// A small unit as a whole.
pub(super) async fn read_document(content: &mut dyn PointContent, unit: &RestoredUnit) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    while let Some(bytes) = content.read().await? {
        if (text.len() + bytes.len()) as u64 > DOCUMENT_LIMIT_BYTES {
            return Err(Error::damaged(format!("{} is larger than it can be", unit.name)));
        }
        text.extend_from_slice(&bytes);
    }
    Ok(text)
}
