//! Files of evidence, verified with nothing else: for auditors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use ulid::Ulid;

use super::super::report::EvidenceReport;
use crate::error::{Context as _, Error, Result};
use crate::repository::evidence::{Aside, Chain, EVIDENCE_MAX_BYTES, Evidence, PublicKey};
use crate::state::evidence::{evidence_name, read_bounded};
use crate::types::Digest;

/// Verifies files, and directories of them. `newest`: the id of what somebody noted as the newest.
///
/// # Errors
/// A directory can not be read; a file is named that has not the name of evidence.
pub fn verify_files(
    files: &[PathBuf],
    key: Option<&PublicKey>,
    newest: Option<Ulid>,
) -> Result<EvidenceReport> {
    let (mut named, mut others) = (BTreeMap::new(), Vec::new());
    for path in files {
        let paths = match path.is_dir() {
            true => std::fs::read_dir(path)
                .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
                .doing(|| format!("can not read {}", path.display()))?,
            false if evidence_name(path).is_none() => {
                return Err(
                    Error::usage(format!("{} is no evidence: its name is no id", path.display())).hint(
                        "Give evidence/<ID>.json as it is in the repository, or the directory of them.",
                    ),
                );
            }
            false => vec![path.clone()],
        };
        for path in paths {
            match evidence_name(&path) {
                Some(id) => named.entry(id).or_insert_with(Vec::new).push(path),
                None => others.push(aside(&path, None, None, "has no name of evidence".to_owned())),
            }
        }
    }
    let (mut evidence, mut put_aside) = (Vec::new(), others);
    for (id, paths) in named {
        for path in paths {
            match read(&path, id, key) {
                Ok(read) => evidence.push(read),
                Err(aside) => put_aside.push(aside),
            }
        }
    }
    // The same evidence in two directories is one; another one of the same id is none.
    let mut by_id: BTreeMap<Ulid, String> = BTreeMap::new();
    for read in &evidence {
        let (id, sha256) = (read.id(), &read.sha256);
        if by_id.entry(id).or_insert_with(|| sha256.clone()) != sha256 {
            put_aside.push(Aside {
                name: id.to_string(),
                id: Some(id),
                sha256: None,
                why: "is there twice, with different bytes".to_owned(),
            });
        }
    }
    let chain = Chain::new(evidence, put_aside);
    let mut report = super::judged(&chain, key, newest);
    report.problems.extend(chain.problems(&[]));
    report.ok = report.problems.is_empty();
    Ok(report)
}

fn aside(path: &Path, id: Option<Ulid>, sha256: Option<String>, why: String) -> Aside {
    Aside {
        name: path.display().to_string(),
        id,
        sha256,
        why,
    }
}

fn read(path: &Path, id: Ulid, key: Option<&PublicKey>) -> std::result::Result<Evidence, Aside> {
    let bytes = match read_bounded(path, EVIDENCE_MAX_BYTES) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => {
            let why = format!("has more than {EVIDENCE_MAX_BYTES} bytes, and is not read");
            return Err(aside(path, Some(id), None, why));
        }
        Err(e) => return Err(aside(path, Some(id), None, format!("can not be read: {e}"))),
    };
    Evidence::accept(id, &bytes, key)
        .map_err(|why| aside(path, Some(id), Some(Digest::of(&bytes).to_string()), why))
}
