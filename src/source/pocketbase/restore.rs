//! Puts a PocketBase point back: a new pb_data that the same binary serves, and the facts compared.

use std::collections::BTreeSet;
use std::path::Path;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::facts::{self, Facts};
use super::scratch::PocketBaseScratch;
use crate::error::{Context as _, Error, Kind, Result};
use crate::source::directory_target::DirectoryTarget;
use crate::source::scratch::{ScratchPlan, ScratchTarget};
use crate::source::{Context, Outline, PointContent, RestoreOptions, Restored, Restorer, Target};

/// The largest facts.json that is read.
const FACTS_MAX: u64 = 256 << 20;

/// Restores points of kind `pocketbase`.
#[derive(Clone, Copy, Debug, Default)]
pub struct PocketBaseRestorer;

fn directory(target: &Target) -> Result<&Path> {
    match target {
        Target::Directory(path) => Ok(path),
        Target::Postgres(_) | Target::Bucket(_) => {
            Err(Error::usage("a PocketBase point is restored to a directory")
                .hint("Give --to a new directory; then serve it with `pocketbase --dir THAT serve`."))
        }
    }
}

#[async_trait]
impl Restorer for PocketBaseRestorer {
    async fn examine(&self, context: &Context, target: &Target, options: &RestoreOptions) -> Result<()> {
        if options.only_database.is_some() || options.only_table.is_some() {
            return Err(Error::usage("--only-database and --only-table are for Postgres"));
        }
        DirectoryTarget::examine(context, directory(target)?)
    }

    async fn scratch(
        &self,
        _context: &Context,
        plan: ScratchPlan,
        _outline: &Outline,
    ) -> Result<Box<dyn ScratchTarget>> {
        Ok(Box::new(PocketBaseScratch::start(plan).await?))
    }

    async fn restore(
        &self,
        context: &Context,
        content: &mut dyn PointContent,
        target: &Target,
        _options: &RestoreOptions,
    ) -> Result<Restored> {
        let path = directory(target)?;
        let mut writer = DirectoryTarget::open(context, path)?;
        let mut restored = Restored::default();
        let mut recorded: Option<Facts> = None;
        let mut written = BTreeSet::new();
        while let Some(unit) = content.next().await? {
            if unit.name.as_str() == "facts.json" {
                if unit.size > FACTS_MAX {
                    return Err(Error::damaged("facts.json is too large"));
                }
                let mut text = Vec::new();
                while let Some(part) = content.read().await? {
                    text.extend_from_slice(&part);
                }
                recorded = Some(
                    serde_json::from_slice(&text)
                        .map_err(|e| Error::damaged("facts.json is damaged").because(e))?,
                );
                continue;
            }
            restored.bytes += writer.write_unit(&unit, content).await?;
            written.insert(unit.name.to_string());
        }
        let compared = path.to_owned();
        let cancel = context.cancel.clone();
        let differences =
            tokio::task::spawn_blocking(move || compare(&compared, recorded.as_ref(), &written, &cancel))
                .await
                .map_err(|e| Error::failed("a thread ended unexpectedly").because(e))??;
        restored.differences = differences;
        writer.finish().await?;
        Ok(restored)
    }
}

/// Compares the result with the facts recorded when it was backed up.
fn compare(
    path: &Path,
    recorded: Option<&Facts>,
    written: &BTreeSet<String>,
    cancel: &CancellationToken,
) -> Result<Vec<String>> {
    let Some(recorded) = recorded else {
        return Ok(vec!["the point has no facts to compare with".to_owned()]);
    };
    let path = path
        .canonicalize()
        .doing(|| format!("{} can not be read", path.display()))?;
    let mut differences = Vec::new();
    for (name, wanted) in &recorded.databases {
        match facts::of_database(&path.join(name), cancel) {
            Ok(found) if found == *wanted => {}
            Ok(found) => {
                for (table, rows) in &wanted.rows {
                    let there = found.rows.get(table).copied().unwrap_or(0);
                    if there != *rows {
                        differences.push(format!(
                            "{name}: table {table} has {there} rows instead of {rows}"
                        ));
                    }
                }
                if found.pages != wanted.pages {
                    differences.push(format!(
                        "{name} has {} pages instead of {}",
                        found.pages, wanted.pages
                    ));
                }
            }
            Err(_) if cancel.is_cancelled() => return Err(Error::new(Kind::Interrupted, "interrupted")),
            Err(e) => differences.push(format!("{name}: {}", e.chain())),
        }
    }
    if !recorded.files_elsewhere {
        for file in &recorded.files {
            let unit = crate::types::UnitName::from_bytes(format!("storage/{file}").as_bytes())?;
            // A point without storage/ has no files at all, which the policy asked for.
            if !written.contains(unit.as_str()) && written.iter().any(|w| w.starts_with("storage/")) {
                differences.push(format!("storage/{file} is missing"));
            }
        }
    }
    Ok(differences)
}
