//! Reads tables of a policy and collects every problem, with its place, instead of stopping at the first.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::SecretRef;
use super::keys;
use crate::error::Error;

/// One thing that is wrong in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1.
    pub column: usize,
    /// Where: `source.orders.schedule`.
    pub path: String,
    /// What.
    pub message: String,
    /// What to do.
    pub suggestion: Option<String>,
}

/// Everything that is wrong in a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyErrors {
    /// The file.
    pub file: PathBuf,
    /// In the order of the file.
    pub problems: Vec<Problem>,
}

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        write!(
            f,
            "{file} has {} problem{}",
            self.problems.len(),
            if self.problems.len() == 1 { "" } else { "s" }
        )?;
        for p in &self.problems {
            write!(f, "\n  {file}:{}:{}: ", p.line, p.column)?;
            if !p.path.is_empty() {
                write!(f, "{}: ", p.path)?;
            }
            write!(f, "{}", p.message)?;
            if let Some(suggestion) = &p.suggestion {
                write!(f, " ({suggestion})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

impl From<PolicyErrors> for Error {
    fn from(errors: PolicyErrors) -> Self {
        Self::usage(errors.to_string())
            .hint("example.toml shows every key: `backup man DIR` writes it to DIR/policies.")
    }
}

/// Collects problems of one text.
pub struct Problems<'t> {
    text: &'t str,
    directory: PathBuf,
    list: RefCell<Vec<Problem>>,
}

impl<'t> Problems<'t> {
    /// Of a text, whose relative paths are taken from a directory.
    pub fn new(text: &'t str, directory: PathBuf) -> Self {
        Self {
            text,
            directory,
            list: RefCell::new(Vec::new()),
        }
    }
    /// Adds one.
    pub fn add(
        &self,
        span: Range<usize>,
        path: &str,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        self.list.borrow_mut().push(Problem {
            line,
            column,
            path: path.to_owned(),
            message: message.into(),
            suggestion,
        });
    }
    /// All, in the order of the file.
    pub fn into_list(self) -> Vec<Problem> {
        let mut list = self.list.into_inner();
        list.sort_by_key(|p| (p.line, p.column));
        list
    }
}

/// A table being read.
pub struct Reader<'a, 't> {
    table: &'a DeTable<'t>,
    /// Where the table is.
    pub span: Range<usize>,
    /// `source.orders`
    pub path: String,
    section: &'static str,
    problems: &'a Problems<'t>,
    asked: RefCell<BTreeSet<String>>,
}

impl<'a, 't> Reader<'a, 't> {
    /// Reads a table as a section.
    pub fn new(
        table: &'a DeTable<'t>,
        span: Range<usize>,
        path: String,
        section: &'static str,
        problems: &'a Problems<'t>,
    ) -> Self {
        Self {
            table,
            span,
            path,
            section,
            problems,
            asked: RefCell::new(BTreeSet::new()),
        }
    }
    /// `path.key`
    pub fn at(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }
    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'t>>> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.table
            .iter()
            .find(|(k, _)| k.get_ref().as_ref() == key)
            .map(|(_, v)| v)
    }
    /// Tells a problem with a key's value.
    pub fn problem(&self, key: &str, message: impl Into<String>, suggestion: Option<String>) {
        let span = self.value(key).map_or(self.span.clone(), Spanned::span);
        self.problems.add(span, &self.at(key), message, suggestion);
    }
    /// Tells a problem with one item of a key's list.
    pub fn problem_in(
        &self,
        key: &str,
        span: Range<usize>,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        self.problems.add(span, &self.at(key), message, suggestion);
    }
    /// Tells a problem with a place.
    pub fn problem_at(&self, span: Range<usize>, message: impl Into<String>, suggestion: Option<String>) {
        self.problems.add(span, &self.path, message, suggestion);
    }
    /// Tells that a key must be there.
    pub fn missing(&self, key: &str) {
        let doc = keys::of_section(self.section)
            .find(|k| k.name == key)
            .map(|k| k.doc.to_owned());
        self.problems
            .add(self.span.clone(), &self.path, format!("{key} is missing"), doc);
    }
    fn typed<T>(&self, key: &str, wanted: &str, take: impl Fn(&'a DeValue<'t>) -> Option<T>) -> Option<T> {
        let value = self.value(key)?.get_ref();
        let taken = take(value);
        if taken.is_none() {
            self.problem(key, format!("must be {wanted}, not {}", describe(value)), None);
        }
        taken
    }
    /// A text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.typed(key, "text", |v| v.as_str().map(str::to_owned))
    }
    /// A text that must not be empty. ([`Self::finish`] tells if it is not there.)
    pub fn filled(&self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.trim().is_empty() {
            self.problem(key, "must not be empty", None);
            return None;
        }
        Some(text)
    }
    /// A path; a relative one is taken from the policy's directory, wherever the command was started.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        let path = self.filled(key)?;
        if path.contains('\0') {
            self.problem(key, "is no path", None);
            return None;
        }
        Some(self.problems.directory.join(path))
    }
    /// A path as it is meant: relative ones are of the policy's directory.
    pub fn beside(&self, path: &str) -> PathBuf {
        self.problems.directory.join(path)
    }
    /// A text that something else parses.
    pub fn parsed<T, E: fmt::Display>(&self, key: &str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        match parse(&self.text(key)?) {
            Ok(value) => Some(value),
            Err(e) => {
                self.problem(key, e.to_string(), None);
                None
            }
        }
    }
    /// One of some texts.
    pub fn one_of(&self, key: &str, among: &[&'static str]) -> Option<&'static str> {
        let text = self.text(key)?;
        let found = among.iter().find(|a| **a == text).copied();
        if found.is_none() {
            let near = keys::nearest(&text, among.iter().copied()).map(|n| format!("did you mean {n:?}?"));
            self.problem(key, format!("{text:?} is none of {}", among.join(", ")), near);
        }
        found
    }
    /// `true` or `false`.
    pub fn boolean(&self, key: &str) -> Option<bool> {
        self.typed(key, "true or false", DeValue::as_bool)
    }
    /// A whole number within bounds.
    pub fn integer(&self, key: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let number = self.typed(key, "a whole number", |v| {
            let n = v.as_integer()?;
            i64::from_str_radix(&n.as_str().replace('_', ""), n.radix()).ok()
        })?;
        if !range.contains(&number) {
            self.problem(
                key,
                format!("must be from {} to {}", range.start(), range.end()),
                None,
            );
            return None;
        }
        Some(number)
    }
    /// A number that counts something.
    pub fn count(&self, key: &str, least: u32) -> Option<u32> {
        self.integer(key, i64::from(least)..=1_000_000)
            .and_then(|n| u32::try_from(n).ok())
    }
    /// A duration.
    pub fn duration(&self, key: &str) -> Option<Duration> {
        let text = self.typed(key, "a duration as text, such as \"15m\"", DeValue::as_str)?;
        let hint = Some("write it as 30s, 15m, 72h or 7d".to_owned());
        // A "month" of 30.44 days is nobody's month.
        let calendar = text
            .split(|c: char| !c.is_alphabetic())
            .any(|unit| ["M", "month", "months", "y", "year", "years", "yr", "yrs"].contains(&unit));
        match humantime::parse_duration(text) {
            Ok(_) if calendar => {
                self.problem(key, format!("{text:?} has no fixed length"), hint);
                None
            }
            Ok(duration) => Some(duration),
            Err(_) => {
                self.problem(key, format!("{text:?} is not a duration"), hint);
                None
            }
        }
    }
    /// A duration that is not shorter than another.
    pub fn duration_from(&self, key: &str, least: Duration) -> Option<Duration> {
        let duration = self.duration(key)?;
        if duration < least {
            self.problem(
                key,
                format!("must be at least {}", humantime::format_duration(least)),
                None,
            );
            return None;
        }
        Some(duration)
    }
    /// A number of bytes.
    pub fn size(&self, key: &str) -> Option<u64> {
        let value = self.value(key)?.get_ref();
        if value.is_integer() {
            return self
                .integer(key, 1..=i64::MAX)
                .and_then(|n| u64::try_from(n).ok());
        }
        let text = self.typed(key, "a size, such as \"20 MiB\"", DeValue::as_str)?;
        match text.parse::<bytesize::ByteSize>() {
            Ok(size) if size.as_u64() > 0 => Some(size.as_u64()),
            _ => {
                self.problem(
                    key,
                    format!("{text:?} is not a size"),
                    Some("write it as 20 MiB or 1 GB".to_owned()),
                );
                None
            }
        }
    }
    /// A list of texts.
    pub fn texts(&self, key: &str) -> Option<Vec<String>> {
        let items = self.items(key)?;
        Some(items.into_iter().map(|(text, _)| text).collect())
    }
    /// A list of texts, each with its place.
    pub fn items(&self, key: &str) -> Option<Vec<(String, Range<usize>)>> {
        let list = self.typed(key, "a list of texts", DeValue::as_array)?;
        let mut items = Vec::new();
        for item in list.iter() {
            match item.get_ref().as_str() {
                Some(text) => items.push((text.to_owned(), item.span())),
                None => {
                    let what = describe(item.get_ref());
                    self.problem_in(
                        key,
                        item.span(),
                        format!("must be a list of texts; here is {what}"),
                        None,
                    );
                }
            }
        }
        Some(items)
    }
    /// A table.
    pub fn table(&self, key: &str, section: &'static str) -> Option<Reader<'a, 't>> {
        let value = self.value(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Reader::new(
                table,
                value.span(),
                self.at(key),
                section,
                self.problems,
            )),
            None => {
                self.problem(
                    key,
                    format!("must be a table, not {}", describe(value.get_ref())),
                    None,
                );
                None
            }
        }
    }
    /// A list of tables.
    pub fn tables(&self, key: &str, section: &'static str) -> Vec<Reader<'a, 't>> {
        let list = self.typed(key, "a list of tables", |v| {
            let items = v.as_array()?.iter();
            items
                .map(|v| Some((v.get_ref().as_table()?, v.span())))
                .collect::<Option<Vec<_>>>()
        });
        let path = |n: usize| format!("{}[{n}]", self.at(key));
        list.unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(n, (table, span))| Reader::new(table, span, path(n), section, self.problems))
            .collect()
    }
    /// Tables named by the operator.
    pub fn named(&self, key: &str, section: &'static str) -> Vec<(String, Range<usize>, Reader<'a, 't>)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            self.problem(key, format!("must be tables: [{key}.NAME]"), None);
            return Vec::new();
        };
        let mut named = Vec::new();
        for (name, value) in table.iter() {
            let path = format!("{}.{}", self.at(key), name.get_ref());
            match value.get_ref().as_table() {
                Some(inner) => {
                    let reader = Reader::new(inner, value.span(), path, section, self.problems);
                    named.push((name.get_ref().to_string(), name.span(), reader));
                }
                None => self
                    .problems
                    .add(value.span(), &path, format!("must be a table: [{path}]"), None),
            }
        }
        named
    }
    /// A reference to a secret; a secret itself is refused and never repeated.
    pub fn secret(&self, key: &str) -> Option<SecretRef> {
        let value = self.value(key)?;
        let how = "write { env = \"NAME\" }, { file = \"/path\" } or { credential = \"name\" }";
        let Some(table) = value.get_ref().as_table() else {
            self.problem(
                key,
                "must be a reference to a secret, not the secret itself",
                Some(how.to_owned()),
            );
            return None;
        };
        let fields: Vec<_> = table.iter().collect();
        let [(name, text)] = fields.as_slice() else {
            self.problem(key, "must name one place of the secret", Some(how.to_owned()));
            return None;
        };
        let text = text
            .get_ref()
            .as_str()
            .filter(|t| !t.is_empty())
            .map(str::to_owned);
        match (name.get_ref().as_ref(), text) {
            ("env", Some(name)) if is_plain(&name) => Some(SecretRef::Env(name)),
            ("file", Some(path)) if !path.contains('\0') => {
                Some(SecretRef::File(self.problems.directory.join(path)))
            }
            ("credential", Some(name)) if is_plain(&name) => Some(SecretRef::Credential(name)),
            ("env" | "file" | "credential", _) => {
                self.problem(key, "names no place that can be looked up", Some(how.to_owned()));
                None
            }
            (other, _) => {
                let near = keys::nearest(other, ["env", "file", "credential"].into_iter());
                let hint = near.map_or(how.to_owned(), |n| format!("did you mean {n}?"));
                self.problem(key, format!("{other} is no place of secrets"), Some(hint));
                None
            }
        }
    }
    /// Tells every key that nobody asked for.
    pub fn finish(&self, also: &[&str]) {
        let known: Vec<&str> = keys::of_section(self.section)
            .map(|k| k.name)
            .chain(also.iter().copied())
            .collect();
        for (key, _) in self.table.iter() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let near = keys::nearest(name, known.iter().copied()).map(|n| format!("did you mean {n}?"));
            self.problems.add(key.span(), &self.at(name), "unknown key", near);
        }
        let required = keys::of_section(self.section).filter(|k| k.required);
        for key in required.filter(|k| self.value(k.name).is_none()) {
            self.missing(key.name);
        }
    }
}

fn is_plain(name: &str) -> bool {
    name.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || b == b'.')
        && !name.starts_with('.')
}

fn describe(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
