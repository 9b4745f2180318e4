//! From the outside to what the jobs need: the policy file, instants, and a policy where there is none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::{DateTime, Utc};
use chrono_tz::Tz;

use crate::error::{Error, Result};
use crate::jobs::session::Lookup;
use crate::policy::{EncryptionPolicy, Policy, RepositoryPolicy, StoreUrl, VerifyPolicy};
use crate::when::When;

/// Where the state is when neither policy nor environment says so.
const STATE_DIR: &str = "/var/lib/lifeboat";
/// The longest text that a `file:` reference is read for.
const REFERENCE_BYTES_MAX: u64 = 64 << 10;

/// Finds and reads the policy.
///
/// # Errors
/// None there, or everything that is wrong in it.
pub fn policy(explicit: Option<&Path>, lookup: &Lookup) -> Result<Policy> {
    let path = crate::policy::find(explicit, &**lookup)?;
    crate::policy::load(&path, &**lookup)
}

/// Reads a WHEN.
///
/// # Errors
/// Not an instant, or an ambiguous or nonexistent local time.
pub fn when(text: &str, zone: Tz, now: DateTime<Utc>) -> Result<When> {
    crate::when::parse(text, zone, now)
}

/// An instant in UTC and in the zone.
pub fn echo(instant: DateTime<Utc>, zone: Tz) -> String {
    if zone == Tz::UTC {
        return super::text::rfc3339(instant);
    }
    crate::when::echo(instant, zone)
}

/// A policy for `--repository URL`: it only says where the repository is. Endpoint and region come from the environment
/// variables that AWS's own tools use, credentials from their standard chain.
///
/// # Errors
/// Not a repository URL.
pub fn without_policy(url: &str, lookup: &Lookup) -> Result<Policy> {
    let set = |name: &str| lookup(name).filter(|value| !value.is_empty());
    Ok(Policy {
        path: PathBuf::from("--repository"),
        // Never compared: the session takes any environment.
        environment: "any".parse()?,
        timezone: Tz::UTC,
        repository: RepositoryPolicy {
            url: store_url(url)?,
            endpoint: set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL")),
            region: set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION")),
            path_style: None,
            ca_file: set("AWS_CA_BUNDLE").map(PathBuf::from),
            max_rate: None,
            grace: Duration::from_secs(72 * 3600),
            object_lock: None,
            versions: false,
            credentials: None,
        },
        encryption: EncryptionPolicy::default(),
        prune: None,
        sources: BTreeMap::new(),
        drills: BTreeMap::new(),
        evidence_key: None,
        verify: VerifyPolicy::default(),
        state_dir: PathBuf::from(
            set("LIFEBOAT_STATE")
                .or_else(|| set("STATE_DIRECTORY"))
                .unwrap_or_else(|| STATE_DIR.to_owned()),
        ),
        concurrency: 1,
        http: crate::policy::HttpPolicy::default(),
        notify: BTreeMap::new(),
    })
}

/// `s3://bucket/prefix`, `file:///path`, or a path.
fn store_url(text: &str) -> Result<StoreUrl> {
    let wrong = |why: &str| {
        Err(Error::usage(format!("--repository: {why}"))
            .hint("Use s3://BUCKET/PREFIX, file:///PATH or a path."))
    };
    if let Some(rest) = text.strip_prefix("s3://") {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) {
            return wrong("the URL names no bucket");
        }
        return Ok(StoreUrl::S3 {
            bucket: bucket.to_owned(),
            prefix: prefix.trim_matches('/').to_owned(),
        });
    }
    if text.starts_with("file:") {
        return match url::Url::parse(text).ok().and_then(|url| url.to_file_path().ok()) {
            Some(path) => Ok(StoreUrl::Directory(path)),
            None => wrong("the file: URL is not of an absolute path"),
        };
    }
    if text.is_empty() || text.contains("://") {
        return wrong("this kind of URL is not known");
    }
    match std::path::absolute(text) {
        Ok(path) => Ok(StoreUrl::Directory(path)),
        Err(_) => wrong("the path can not be made absolute"),
    }
}

/// The text of a small file that may hold a secret: one line, its end left out.
///
/// # Errors
/// It can not be read, is too long, or has more than one line.
pub fn reference_file(path: &Path) -> Result<String> {
    use std::io::Read as _;
    let what = || format!("can not read {}", path.display());
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(REFERENCE_BYTES_MAX).read_to_string(&mut text))
        .map_err(|e| Error::usage(what()).because(e))?;
    let line = text.trim_end_matches(['\n', '\r']);
    if line.is_empty() || line.contains(['\n', '\0']) {
        return Err(Error::usage(format!(
            "{} is not one line of text",
            path.display()
        )));
    }
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repository_urls() {
        let s3 = |bucket: &str, prefix: &str| StoreUrl::S3 {
            bucket: bucket.into(),
            prefix: prefix.into(),
        };
        assert_eq!(store_url("s3://b").unwrap(), s3("b", ""));
        assert_eq!(store_url("s3://b/a/c/").unwrap(), s3("b", "a/c"));
        assert_eq!(
            store_url("file:///srv/a%20b").unwrap(),
            StoreUrl::Directory("/srv/a b".into())
        );
        assert_eq!(store_url("/srv").unwrap(), StoreUrl::Directory("/srv".into()));
        for bad in [
            "",
            "s3://",
            "s3:///x",
            "s3://key:secret@b/x",
            "https://b/x",
            "file://host/x",
        ] {
            assert!(store_url(bad).is_err(), "{bad}");
        }
    }
}
