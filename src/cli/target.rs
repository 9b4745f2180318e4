//! Where a restore goes, as the command line says it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use url::Url;

use super::load::reference_file;
use super::text::nearest;
use crate::error::{Context as _, Error, Result};
use crate::jobs::session::Lookup;
use crate::secret::SecretText;
use crate::source::Target;
use crate::types::SourceName;

/// What to do about a password on the command line, where every user of the host can read it.
const PASSWORD_HINT: &str = "Every user of this host can read it there: use --to env:NAME or --to file:PATH, or leave \
    the password out and set PGPASSWORD.";

/// Reads a TARGET.
///
/// # Errors
/// Not a target, a password on the command line, or a reference to nothing.
pub fn parse(text: &OsStr, lookup: &Lookup) -> Result<Target> {
    let Some(known) = text.to_str() else {
        return directory(Path::new(text));
    };
    if let Some(name) = known.strip_prefix("env:") {
        let value = lookup(name)
            .filter(|value| !value.is_empty())
            .ok_or_else(|| Error::usage(format!("--to env:{name}: the environment variable is not set")))?;
        return referred(&value, lookup).map_err(|e| e.while_doing(format!("--to env:{name}")));
    }
    if let Some(path) = known.strip_prefix("file:").filter(|rest| !rest.starts_with("//")) {
        let value = reference_file(Path::new(path))?;
        return referred(&value, lookup).map_err(|e| e.while_doing(format!("--to file:{path}")));
    }
    if is_postgres(known) && has_password(known) {
        return Err(Error::usage("--to has a password in it").hint(PASSWORD_HINT));
    }
    plain(known, lookup)
}

/// Reads the TARGET of one source, which may be named before it.
///
/// # Errors
/// As [`parse`]; another source is named.
pub fn parse_one(text: &OsStr, source: &SourceName, lookup: &Lookup) -> Result<Target> {
    match split(text) {
        (None, text) => parse(&text, lookup),
        (Some(named), rest) if named == *source => parse(&rest, lookup),
        (Some(named), _) => Err(Error::usage(format!(
            "--to {named}=… is a target of {named}, and {source} is restored"
        ))
        .hint(format!(
            "Use --to {source}=TARGET or --to TARGET; a directory with = in its name is ./{named}=…"
        ))),
    }
}

fn referred(text: &str, lookup: &Lookup) -> Result<Target> {
    if text.starts_with("env:") || text.starts_with("file:") && !text.starts_with("file://") {
        return Err(Error::usage("the reference leads to another reference"));
    }
    plain(text, lookup)
}

fn plain(text: &str, lookup: &Lookup) -> Result<Target> {
    if is_postgres(text) {
        // Its text may hold a password: no message quotes it.
        let mut url = Url::parse(text)
            .map_err(|e| Error::usage("the target is not a postgres:// URL").because(e))
            .map_err(|e| {
                e.hint("It is postgres://USER@HOST:PORT/DATABASE, with odd characters percent-encoded.")
            })?;
        if let Some(password) = lookup("PGPASSWORD").filter(|p| !p.is_empty() && !has_password(text)) {
            // A URL without a host takes no password; such a server is reached by other means.
            let _ = url.set_password(Some(&password));
            return Ok(Target::Postgres(SecretText::new(url.into())));
        }
        return Ok(Target::Postgres(SecretText::new(text.to_owned())));
    }
    if let Some(bucket) = text.strip_prefix("s3://") {
        if bucket.is_empty() || bucket.starts_with('/') || bucket.contains('@') {
            return Err(Error::usage("the target names no bucket").hint("Use s3://BUCKET/PREFIX."));
        }
        return Ok(Target::Bucket(text.to_owned()));
    }
    if text.starts_with("file://") {
        let path = Url::parse(text).ok().and_then(|url| url.to_file_path().ok());
        return directory(&path.ok_or_else(|| {
            Error::usage(format!("{text:?} is not the URL of an absolute path"))
                .hint("Use file:///PATH, or just the path.")
        })?);
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(
            Error::usage(format!("{:?} is not a kind of target", format!("{scheme}://")))
                .hint("A target is a directory or a postgres:// URL."),
        );
    }
    directory(Path::new(text))
}

fn directory(path: &Path) -> Result<Target> {
    if path.as_os_str().is_empty() {
        return Err(Error::usage("--to is empty").hint("A target is a directory or a postgres:// URL."));
    }
    let path = std::path::absolute(path).doing(|| "the working directory can not be found")?;
    Ok(Target::Directory(path))
}

fn is_postgres(text: &str) -> bool {
    text.starts_with("postgres://") || text.starts_with("postgresql://")
}

/// Whether a `postgres://` URL has a password, even one that is written wrong (with an `@` or `/` inside).
fn has_password(url: &str) -> bool {
    let rest = url.split_once("://").map_or("", |(_, rest)| rest);
    let in_user = rest.split_once('@').is_some_and(|(user, _)| {
        user.split_once(':')
            .is_some_and(|(_, password)| !password.is_empty())
    });
    let in_query = rest.split_once('?').is_some_and(|(_, query)| {
        query.split('&').any(|pair| {
            pair.strip_prefix("password=").is_some_and(|p| !p.is_empty()) || pair.starts_with("sslpassword=")
        })
    });
    in_user || in_query
}

/// Hides the passwords of every URL in a message: for messages that quote arguments.
pub fn without_passwords(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let word = after.split([' ', '\'', '"', '\n']).next().unwrap_or(after);
        rest = after;
        if let Some((user, _)) = word.rsplit_once('@')
            && let Some((name, _)) = user.split_once(':')
        {
            out.push_str(name);
            out.push_str(":***");
            rest = &after[user.len()..];
        }
    }
    out.push_str(rest);
    without_password_parameters(&out)
}

/// The same for `password=…` in a query.
fn without_password_parameters(text: &str) -> String {
    const NAME: &str = "password=";
    let mut parts = text.split(NAME);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(['&', ' ', '\'', '"', '\n']).unwrap_or(part.len());
        out.push_str(NAME);
        out.push_str(if end > 0 { "***" } else { "" });
        out.push_str(&part[end..]);
    }
    out
}

/// The targets of `--all`.
#[derive(Debug)]
pub enum AllTargets {
    /// None: a plan only.
    None,
    /// A directory, with a subdirectory for each source.
    Below(PathBuf),
    /// One for each source.
    Each(BTreeMap<SourceName, Target>),
}

/// Reads the `--to` of `--all`.
///
/// # Errors
/// A target twice, a source that is not there or left out, or a single target that is no directory.
pub fn parse_all(texts: &[OsString], sources: &[SourceName], lookup: &Lookup) -> Result<AllTargets> {
    let pairs: Vec<(Option<SourceName>, OsString)> = texts.iter().map(|text| split(text)).collect();
    match pairs.as_slice() {
        [] => return Ok(AllTargets::None),
        [(None, text)] => {
            return match parse(text, lookup)? {
                Target::Directory(path) => Ok(AllTargets::Below(path)),
                _ => Err(Error::usage("with --all, one --to is a directory")
                    .hint("Use --to SOURCE=TARGET once for each source to say where each one goes.")),
            };
        }
        _ => {}
    }
    let mut targets = BTreeMap::new();
    for (source, text) in pairs {
        let Some(source) = source else {
            return Err(Error::usage(
                "with --all, --to is one directory, or SOURCE=TARGET once for each source",
            ));
        };
        if !sources.contains(&source) {
            return Err(unknown_source(source.as_str(), sources.iter()));
        }
        if targets.insert(source.clone(), parse(&text, lookup)?).is_some() {
            return Err(Error::usage(format!("--to {source}=… is given twice")));
        }
    }
    let left: Vec<&str> = sources
        .iter()
        .filter(|s| !targets.contains_key(s))
        .map(SourceName::as_str)
        .collect();
    if !left.is_empty() {
        return Err(Error::usage(format!("no --to is given for {}", left.join(", ")))
            .hint("With --all, --to SOURCE=TARGET is given once for each source."));
    }
    Ok(AllTargets::Each(targets))
}

/// `SOURCE=TARGET`, when what stands before the sign can be a source's name.
fn split(text: &OsStr) -> (Option<SourceName>, OsString) {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = text.as_bytes();
    let found = bytes.iter().position(|b| *b == b'=').and_then(|at| {
        let name = std::str::from_utf8(&bytes[..at]).ok()?.parse().ok()?;
        Some((name, OsStr::from_bytes(&bytes[at + 1..]).to_owned()))
    });
    match found {
        Some((name, rest)) => (Some(name), rest),
        None => (None, text.to_owned()),
    }
}

/// Refuses the name of a source that is not there.
pub fn unknown_source<'a>(name: &str, sources: impl Iterator<Item = &'a SourceName> + Clone) -> Error {
    let error = Error::usage(format!("there is no source {name:?}"));
    let all: Vec<&str> = sources.map(SourceName::as_str).collect();
    if all.is_empty() {
        return error.hint("There is none at all.");
    }
    let meant = nearest(name, all.iter().copied())
        .map(|n| format!("Did you mean {n}? "))
        .unwrap_or_default();
    error.hint(format!("{meant}There is: {}.", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::error::Kind;

    fn lookup(pairs: &'static [(&'static str, &'static str)]) -> Lookup {
        Arc::new(move |name| {
            pairs
                .iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        })
    }
    fn read(text: &str, pairs: &'static [(&'static str, &'static str)]) -> Result<Target> {
        parse(OsStr::new(text), &lookup(pairs))
    }
    fn url(target: Result<Target>) -> String {
        match target.unwrap() {
            Target::Postgres(secret) => secret.expose().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_password_on_the_command_line_is_refused_and_not_repeated() {
        for text in [
            "postgres://u:hunter2@h/db",
            "postgresql://u:hunter2@h:5432/db",
            "postgres://u:hun@ter2@h/db",
            "postgres://u:hun/ter2@h/db",
            "postgres://h/db?password=hunter2",
            "postgres://h/db?a=b&password=hunter2",
        ] {
            let error = read(text, &[]).unwrap_err();
            assert_eq!(error.kind(), Kind::Usage, "{text}");
            let said = format!("{error:?}");
            assert!(!said.contains("hun") && !said.contains("ter2"), "{said}");
            assert!(said.contains("--to env:NAME"), "{said}");
        }
    }

    #[test]
    fn a_password_by_reference_is_taken() {
        const URL: &str = "postgres://u:hunter2@h/db";
        assert_eq!(url(read("env:T", &[("T", URL)])), URL);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        std::fs::write(&path, format!("{URL}\n")).unwrap();
        assert_eq!(url(read(&format!("file:{}", path.display()), &[])), URL);
        assert_eq!(
            url(read("postgres://u@h:5433/db", &[("PGPASSWORD", "p@ss/word")])),
            "postgres://u:p%40ss%2Fword@h:5433/db"
        );
        assert_eq!(url(read("postgres://u@h/db", &[])), "postgres://u@h/db");
        assert_eq!(url(read("env:T", &[("T", URL), ("PGPASSWORD", "other")])), URL);
    }

    #[test]
    fn references_lead_to_one_target() {
        assert!(read("env:T", &[]).is_err());
        assert!(read("env:T", &[("T", "")]).is_err());
        assert!(read("env:T", &[("T", "env:U"), ("U", "/x")]).is_err());
        assert!(read("env:T", &[("T", "file:/etc/hostname")]).is_err());
        assert!(read("file:/nonexistent/x", &[]).is_err());
        assert!(matches!(read("env:T", &[("T", "/x")]), Ok(Target::Directory(p)) if p == Path::new("/x")));
    }

    #[test]
    fn kinds_of_target() {
        assert!(matches!(read("/srv/x", &[]), Ok(Target::Directory(p)) if p == Path::new("/srv/x")));
        assert!(matches!(read("x", &[]), Ok(Target::Directory(p)) if p.is_absolute()));
        assert!(
            matches!(read("file:///srv/a%20b", &[]), Ok(Target::Directory(p)) if p == Path::new("/srv/a b"))
        );
        assert!(matches!(read("s3://b/p", &[]), Ok(Target::Bucket(u)) if u == "s3://b/p"));
        for bad in [
            "",
            "https://h/x",
            "mysql://h/x",
            "s3://",
            "s3:///x",
            "file://host/x",
        ] {
            assert_eq!(read(bad, &[]).unwrap_err().kind(), Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn one_source_may_be_named_and_no_other() {
        let source = "orders".parse().unwrap();
        let one = |text: &str| parse_one(OsStr::new(text), &source, &lookup(&[]));
        assert!(matches!(one("orders=/srv/x"), Ok(Target::Directory(p)) if p == Path::new("/srv/x")));
        assert!(matches!(one("/srv/x=y"), Ok(Target::Directory(p)) if p == Path::new("/srv/x=y")));
        assert!(matches!(one("./a=b"), Ok(Target::Directory(p)) if p.ends_with("a=b")));
        let error = one("app=/srv/x").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.message().contains("orders is restored"), "{error}");
    }

    #[test]
    fn one_directory_or_one_target_for_each_source() {
        let sources: Vec<SourceName> = ["app", "orders"].map(|s| s.parse().unwrap()).to_vec();
        let all = |texts: &[&str]| {
            let texts: Vec<OsString> = texts.iter().map(OsString::from).collect();
            parse_all(&texts, &sources, &lookup(&[]))
        };
        assert!(matches!(all(&[]), Ok(AllTargets::None)));
        assert!(matches!(all(&["/srv/x"]), Ok(AllTargets::Below(p)) if p == Path::new("/srv/x")));
        match all(&["app=/a", "orders=postgres://h/o?x=y"]).unwrap() {
            AllTargets::Each(map) => assert_eq!(map.len(), 2),
            other => panic!("{other:?}"),
        }
        for bad in [
            &["app=/a"][..],
            &["app=/a", "app=/b"],
            &["app=/a", "/b"],
            &["app=/a", "order=/b"],
            &["postgres://h/db"],
            &["app=/a", "orders=postgres://u:p@h/o"],
        ] {
            assert_eq!(all(bad).unwrap_err().kind(), Kind::Usage, "{bad:?}");
        }
        let said = format!("{:?}", all(&["app=/a", "order=/b"]).unwrap_err());
        assert!(said.contains("Did you mean orders?"), "{said}");
    }

    #[test]
    fn messages_hide_passwords() {
        assert_eq!(
            without_passwords("unexpected argument 'postgres://u:p@s:s@h/db' found, s3://b"),
            "unexpected argument 'postgres://u:***@h/db' found, s3://b"
        );
        assert_eq!(without_passwords("http://h:80/x"), "http://h:80/x");
        assert_eq!(
            without_passwords("'postgres://h/d?sslpassword=a&password=b&c=d' found"),
            "'postgres://h/d?sslpassword=***&password=***&c=d' found"
        );
    }
}
