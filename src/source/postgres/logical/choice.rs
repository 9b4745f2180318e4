//! What of a point is restored, and where to: told from its documents, before anything is written.

use std::collections::BTreeSet;

use super::roles::Wanted as WantedRoles;
use crate::error::{Error, Result};
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::postgres::facts::{
    CLUSTER_UNIT, Cluster, Database, DatabaseFacts, FACTS_UNIT, Facts, Relation, RelationKind, decode,
};
use crate::source::{Outline, Part, RestoreOptions};

/// How many tables like the one that was named are shown.
const LIKE_IT: usize = 5;

/// The documents of a point.
pub(super) struct Documents {
    pub(super) cluster: Cluster,
    pub(super) facts: Facts,
}

impl Documents {
    pub(super) fn of(outline: &Outline) -> Result<Self> {
        Ok(Self {
            cluster: document(outline, CLUSTER_UNIT)?,
            facts: document(outline, FACTS_UNIT)?,
        })
    }

    pub(super) fn facts_of(&self, database: &str) -> Result<&DatabaseFacts> {
        let found = self.facts.databases.iter().find(|d| d.name == database);
        found.ok_or_else(|| Error::damaged(format!("{FACTS_UNIT} says nothing of database {database:?}")))
    }

    /// The databases that the options choose, with what is known of them.
    pub(super) fn parts(&self, outline: &Outline, options: &RestoreOptions) -> Result<Vec<Part>> {
        let chosen = databases(&self.cluster, options)?;
        let mut parts = Vec::new();
        for database in chosen {
            let facts = self.facts_of(&database.name)?;
            let tables = facts.relations.iter().filter(|r| r.kind == RelationKind::Table);
            parts.push(Part {
                name: database.name.clone(),
                bytes: outline.sizes.get(&database.unit).copied().unwrap_or_default(),
                tables: tables.clone().count() as u64,
                rows: tables.filter_map(|r| r.rows).sum(),
                at: database.snapshot_at,
            });
        }
        if let Some(text) = &options.only_table {
            self.refuse_unfit_table(&parts, text)?;
        }
        Ok(parts)
    }

    /// One table can be restored when there is one database to take it from, and it is in it with its rows.
    fn refuse_unfit_table(&self, parts: &[Part], text: &str) -> Result<()> {
        let (schema, name) = split_table(text)?;
        let [part] = parts else {
            let names: Vec<String> = parts.iter().map(|p| format!("{:?}", p.name)).collect();
            return Err(Error::usage(format!(
                "the point has several databases ({}): whose table?",
                names.join(", ")
            ))
            .hint("Choose one with --only-database."));
        };
        let relations = &self.facts_of(&part.name)?.relations;
        let Some(found) = relations.iter().find(|r| r.schema == schema && r.name == name) else {
            let error = Error::usage(format!(
                "database {:?} of the point has no table {}",
                part.name,
                shown(&schema, &name)
            ));
            let like = like_it(relations, &schema, &name);
            return Err(error.hint(if like.is_empty() {
                "Write it as schema.table, with the letters as they are; a table without a schema is one of public."
                    .to_owned()
            } else {
                format!("There is: {}.", like.join(", "))
            }));
        };
        let what = format!("{} {} of the point", found.kind.name(), shown(&schema, &name));
        if found.excluded {
            return Err(
                Error::usage(format!("the policy left the rows of {what} out of the backup"))
                    .hint("Restore the whole database for its definition."),
            );
        }
        if found.kind == RelationKind::PartitionedTable {
            return Err(
                Error::usage(format!("{what} has no rows of its own: its partitions have them")).hint(
                    "Restore a partition, which is a table too, or the whole database with --only-database.",
                ),
            );
        }
        Ok(())
    }
}

fn document<T: serde::de::DeserializeOwned>(outline: &Outline, unit: &str) -> Result<T> {
    let bytes = outline.documents.get(unit);
    decode(
        unit,
        bytes.ok_or_else(|| Error::damaged(format!("the point has no {unit}")))?,
    )
}

/// The databases that the options choose.
fn databases<'a>(cluster: &'a Cluster, options: &RestoreOptions) -> Result<Vec<&'a Database>> {
    let Some(only) = &options.only_database else {
        return Ok(cluster.databases.iter().collect());
    };
    Ok(vec![named(cluster, only)?])
}

/// A database of the point.
pub(super) fn named<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Database> {
    let mut databases = cluster.databases.iter();
    databases.find(|d| d.name == name).ok_or_else(|| {
        Error::usage(format!("the point has no database {name:?}"))
            .hint(format!("It has: {}. Nothing was written.", names(cluster)))
    })
}

fn names(cluster: &Cluster) -> String {
    let list: Vec<String> = cluster
        .databases
        .iter()
        .map(|d| format!("{:?}", d.name))
        .collect();
    list.join(", ")
}

/// Which databases go where, and which roles come with them.
pub(super) struct Choice {
    /// Each with its name in the target.
    pub(super) databases: Vec<(Database, String)>,
    pub(super) roles: WantedRoles,
}

/// Which databases go where.
pub(super) fn choose(cluster: &Cluster, address: &Address, options: &RestoreOptions) -> Result<Choice> {
    let chosen = databases(cluster, options)?;
    let keep_names = |roles| {
        Ok(Choice {
            databases: chosen.iter().map(|d| ((*d).clone(), d.name.clone())).collect(),
            roles,
        })
    };
    let of_less = options.only_database.is_some() || options.only_table.is_some();
    match (chosen.as_slice(), &address.database) {
        ([], _) => Err(Error::damaged("the point has no database")),
        ([one], Some(target)) => Ok(Choice {
            databases: vec![((*one).clone(), target.clone())],
            roles: WantedRoles::OfDatabases,
        }),
        ([_, _, ..], Some(target)) if target != "postgres" => Err(Error::usage(format!(
            "the point has several databases ({}) and the target is one, {target:?}",
            names(cluster)
        ))
        .hint("Give a URL without a database, so that they keep their names, or choose one with --only-database.")),
        _ if of_less => keep_names(WantedRoles::OfDatabases),
        _ => keep_names(WantedRoles::All),
    }
}

/// `table` is in `public`; `schema.table` says where. Letters count as they are; a name with a dot or a quote in it is
/// written in double quotes, as in SQL.
///
/// # Errors
/// A quote that stands where SQL would not have it, or an empty name.
pub(super) fn split_table(text: &str) -> Result<(String, String)> {
    let wrong = || {
        Error::usage(format!("--only-table {text:?} names no table")).hint(
            "Write TABLE or SCHEMA.TABLE; a name with a dot or a quote goes into double quotes, each quote in it doubled: 'public.\"a \"\"b\"\".c\"'.",
        )
    };
    let mut parts = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut part = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    Some('"') if chars.next_if_eq(&'"').is_some() => part.push('"'),
                    Some('"') => break,
                    Some(c) => part.push(c),
                    None => return Err(wrong()),
                }
            }
        } else {
            while let Some(c) = chars.next_if(|c| *c != '.' && *c != '"') {
                part.push(c);
            }
        }
        if part.is_empty() {
            return Err(wrong());
        }
        parts.push(part);
        match chars.next() {
            None => break,
            Some('.') if parts.len() == 1 => {}
            Some(_) => return Err(wrong()),
        }
    }
    let table = parts.pop().unwrap_or_default();
    Ok((parts.pop().unwrap_or_else(|| "public".into()), table))
}

/// A table as `--only-table` takes it.
fn shown(schema: &str, name: &str) -> String {
    let part = |text: &str| match text.contains(['.', '"']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    format!("{}.{}", part(schema), part(name))
}

/// Tables that were probably meant: of that name in other schemas, or of one that differs by a letter or two.
fn like_it(relations: &[Relation], schema: &str, name: &str) -> Vec<String> {
    let wanted = name.to_lowercase();
    let mut found: Vec<(bool, usize, String)> = relations
        .iter()
        .filter_map(|r| {
            let far = distance(&wanted, &r.name.to_lowercase());
            (far <= 1 + wanted.chars().count() / 4)
                .then(|| (r.schema != schema, far, shown(&r.schema, &r.name)))
        })
        .collect();
    found.sort();
    found.into_iter().take(LIKE_IT).map(|(_, _, name)| name).collect()
}

/// Levenshtein's distance. A name of a server has at most 63 bytes.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(64).enumerate() {
        let mut before = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let cost = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = cost.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Extensions that the dumps will ask for must be there to be created.
///
/// # Errors
/// One is not: names each, its databases and its package.
pub(super) async fn refuse_lacking_extensions(
    server: &Session,
    version: u32,
    wanted: &[&DatabaseFacts],
) -> Result<()> {
    let sql = "SELECT name::text FROM pg_catalog.pg_available_extensions";
    let rows = server.rows("list the available extensions", sql, &[]).await?;
    let there: Result<BTreeSet<String>> = rows.iter().map(|row| value(row, 0)).collect();
    let there = there?;
    let mut lacking = Vec::new();
    let mut packages = BTreeSet::new();
    for facts in wanted {
        for extension in facts.extensions.iter().filter(|e| !there.contains(&e.name)) {
            lacking.push(format!("{:?} of database {:?}", extension.name, facts.name));
            packages.insert(package(&extension.name, version / 10_000));
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let packages: Vec<String> = packages.into_iter().collect();
    Err(Error::usage(format!(
        "the target server lacks extensions that the point has: {}",
        lacking.join(", ")
    ))
    .hint(format!(
        "Install {} on the target server; or restore the other databases with --only-database.",
        packages.join(" and ")
    )))
}

/// Which package has an extension.
fn package(extension: &str, major: u32) -> String {
    // What comes with Postgres itself, apart from procedural languages.
    const CONTRIB: [&str; 41] = [
        "adminpack",
        "amcheck",
        "autoinc",
        "bloom",
        "btree_gin",
        "btree_gist",
        "citext",
        "cube",
        "dblink",
        "dict_int",
        "dict_xsyn",
        "earthdistance",
        "file_fdw",
        "fuzzystrmatch",
        "hstore",
        "insert_username",
        "intagg",
        "intarray",
        "isn",
        "lo",
        "ltree",
        "moddatetime",
        "old_snapshot",
        "pageinspect",
        "pg_buffercache",
        "pg_freespacemap",
        "pg_prewarm",
        "pg_stat_statements",
        "pg_surgery",
        "pg_trgm",
        "pg_visibility",
        "pg_walinspect",
        "pgcrypto",
        "pgrowlocks",
        "pgstattuple",
        "postgres_fdw",
        "refint",
        "seg",
        "sslinfo",
        "tablefunc",
        "unaccent",
    ];
    const OTHERS: [(&str, &str); 10] = [
        ("postgis", "postgis-3"),
        ("pgrouting", "pgrouting"),
        ("vector", "pgvector"),
        ("pg_cron", "cron"),
        ("pg_partman", "partman"),
        ("pg_repack", "repack"),
        ("pgaudit", "pgaudit"),
        ("hll", "hll"),
        ("plpython3u", "plpython3"),
        ("plperl", "plperl"),
    ];
    if CONTRIB.contains(&extension) || extension == "uuid-ossp" || extension == "tsm_system_rows" {
        return format!("postgresql-{major} with its contrib modules (RPM: postgresql{major}-contrib)");
    }
    let known = OTHERS.iter().find(|(name, _)| {
        let family = *name == "postgis" && extension.starts_with("postgis_");
        *name == extension || family
    });
    match known {
        Some((_, package)) => format!("postgresql-{major}-{package}"),
        None => format!("the package of the extension {extension:?} for version {major}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_named_with_or_without_a_schema() {
        let split = |text: &str| split_table(text).unwrap();
        assert_eq!(split("t"), ("public".into(), "t".into()));
        assert_eq!(split("s.T"), ("s".into(), "T".into()));
        assert_eq!(split("\"a.b\".\"c\"\"d\""), ("a.b".into(), "c\"d".into()));
        assert_eq!(split("s.it's; drop"), ("s".into(), "it's; drop".into()));
        assert_eq!(split("\"\"\"\""), ("public".into(), "\"".into()));
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a.b.c",
            "bad\"name",
            "\"open",
            "\"a\"b",
            "\"\"",
        ] {
            let error = split_table(bad).unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn what_is_shown_can_be_given_back() {
        for (schema, name) in [("public", "t"), ("a.b", "c\"d"), ("s", "é t")] {
            assert_eq!(
                split_table(&shown(schema, name)).unwrap(),
                (schema.into(), name.into())
            );
        }
    }

    #[test]
    fn packages_of_extensions() {
        assert_eq!(package("vector", 17), "postgresql-17-pgvector");
        assert_eq!(package("postgis_topology", 16), "postgresql-16-postgis-3");
        assert!(package("hstore", 18).contains("postgresql18-contrib"));
        assert!(package("odd", 18).contains("\"odd\""));
    }
}
