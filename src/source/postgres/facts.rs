//! What is recorded beside the dumps: `cluster.json` (what a restore must know before the data: it sorts before
//! `databases/`) and `facts.json` (what the data must be like afterwards: it sorts after).
//!
//! Both are read back by later versions: fields are only ever added, with a default.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::error::{Context as _, Error, Result};

/// The unit with [`Cluster`].
pub(crate) const CLUSTER_UNIT: &str = "cluster.json";
/// The unit with [`Facts`].
pub(crate) const FACTS_UNIT: &str = "facts.json";
/// The unit with the statements of `pg_dumpall --globals-only`, for people and other tools.
pub(crate) const GLOBALS_UNIT: &str = "globals.sql";
/// The schema that stands in a database while a restore into it is incomplete.
pub(crate) const MARKER_SCHEMA: &str = "lifeboat_restore_incomplete";
const FORMAT: u32 = 1;
/// The largest document of ours that is taken back into memory.
pub(crate) const DOCUMENT_LIMIT_BYTES: u64 = 64 << 20;

/// The server, its roles and its databases.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) format: u32,
    /// `server_version_num`.
    pub(crate) version: u32,
    /// `server_version`.
    pub(crate) version_text: String,
    /// Major version of the `pg_dump` that made the dumps.
    pub(crate) dump_major: u32,
    /// Its full version.
    pub(crate) dump_version: String,
    #[serde(default)]
    pub(crate) system_identifier: Option<String>,
    #[serde(default)]
    pub(crate) lsn: Option<String>,
    #[serde(default)]
    pub(crate) standby: bool,
    /// Whether the roles' passwords could be read.
    #[serde(default)]
    pub(crate) role_passwords: bool,
    #[serde(default)]
    pub(crate) roles: Vec<Role>,
    #[serde(default)]
    pub(crate) memberships: Vec<Membership>,
    #[serde(default)]
    pub(crate) tablespaces: Vec<String>,
    pub(crate) databases: Vec<Database>,
}

/// A role as `CREATE ROLE` wants it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Role {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) superuser: bool,
    #[serde(default)]
    pub(crate) inherit: bool,
    #[serde(default)]
    pub(crate) create_role: bool,
    #[serde(default)]
    pub(crate) create_database: bool,
    #[serde(default)]
    pub(crate) login: bool,
    #[serde(default)]
    pub(crate) replication: bool,
    #[serde(default)]
    pub(crate) bypass_rls: bool,
    pub(crate) connection_limit: i32,
    /// The stored (hashed) password.
    #[serde(default)]
    pub(crate) password: Option<String>,
    /// `VALID UNTIL`, as text.
    #[serde(default)]
    pub(crate) valid_until: Option<String>,
    /// `name=value` settings in all databases.
    #[serde(default)]
    pub(crate) settings: Vec<String>,
}

/// One role in another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Membership {
    pub(crate) group: String,
    pub(crate) member: String,
    #[serde(default)]
    pub(crate) admin: bool,
    /// From 16 on.
    #[serde(default)]
    pub(crate) inherit: Option<bool>,
    /// From 16 on.
    #[serde(default)]
    pub(crate) set: Option<bool>,
}

/// A database as `CREATE DATABASE` wants it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Database {
    pub(crate) name: String,
    /// The unit with its dump.
    pub(crate) unit: String,
    pub(crate) owner: String,
    pub(crate) encoding: String,
    pub(crate) collate: String,
    pub(crate) ctype: String,
    /// `libc`, `icu` or `builtin`.
    pub(crate) provider: String,
    #[serde(default)]
    pub(crate) locale: Option<String>,
    #[serde(default)]
    pub(crate) icu_rules: Option<String>,
    #[serde(default)]
    pub(crate) collation_version: Option<String>,
    pub(crate) connection_limit: i32,
    #[serde(default)]
    pub(crate) comment: Option<String>,
    /// `None`: the default privileges.
    #[serde(default)]
    pub(crate) grants: Option<Vec<Grant>>,
    /// Settings of the database, and of roles in it.
    #[serde(default)]
    pub(crate) settings: Vec<DatabaseSetting>,
    /// Roles that own something in it or are granted something.
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    /// When its snapshot was taken, on the server's clock.
    pub(crate) snapshot_at: DateTime<Utc>,
}

/// A privilege on a database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Grant {
    /// `None`: everybody.
    pub(crate) role: Option<String>,
    pub(crate) privilege: String,
    #[serde(default)]
    pub(crate) grantable: bool,
}

/// A setting of a database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DatabaseSetting {
    /// `None`: of all roles.
    #[serde(default)]
    pub(crate) role: Option<String>,
    /// `name=value`.
    pub(crate) setting: String,
}

/// What the data is like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) format: u32,
    pub(crate) databases: Vec<DatabaseFacts>,
    /// Patterns of tables that were left out.
    #[serde(default)]
    pub(crate) excluded: Vec<String>,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
}

/// What is in one database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct DatabaseFacts {
    pub(crate) name: String,
    pub(crate) schemas: Vec<String>,
    pub(crate) relations: Vec<Relation>,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) large_objects: u64,
    /// How many functions, indexes, constraints, triggers and policies there are; those of extensions not counted.
    #[serde(default)]
    pub(crate) counts: BTreeMap<String, u64>,
    /// SHA-256 of what the schema is, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) schema_digest: Option<String>,
    /// Patterns of the policy's `exclude` that match no table here.
    #[serde(skip)]
    pub(crate) unmatched: Vec<String>,
}

/// A table, view, materialized view or foreign table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Relation {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) kind: RelationKind,
    /// Rows in the snapshot, exactly; of plain tables (partitions each) whose data is in the dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rows: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unlogged: bool,
    /// Left out of the dump by the policy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) excluded: bool,
    /// Of a materialized view: whether it holds data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) populated: Option<bool>,
}

/// What a relation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RelationKind {
    Table,
    PartitionedTable,
    View,
    MaterializedView,
    ForeignTable,
}

impl RelationKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::PartitionedTable => "partitioned table",
            Self::View => "view",
            Self::MaterializedView => "materialized view",
            Self::ForeignTable => "foreign table",
        }
    }
}

/// A sequence. Sequences obey no snapshot: it is read before and after the dump, and what the dump holds lies between.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sequence {
    pub(crate) schema: String,
    pub(crate) name: String,
    pub(crate) before: SequenceValue,
    /// `None`: it could not be read again.
    #[serde(default)]
    pub(crate) after: Option<SequenceValue>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) excluded: bool,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SequenceValue {
    pub(crate) last_value: i64,
    pub(crate) is_called: bool,
}

/// An extension.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Extension {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Database {
    /// Whether there is anything beside the owner that a database made by hand lacks.
    pub(crate) fn has_properties(&self) -> bool {
        !self.settings.is_empty()
            || self.grants.is_some()
            || self.comment.is_some()
            || self.connection_limit != -1
    }
}

impl Cluster {
    pub(crate) const FORMAT: u32 = FORMAT;
}

impl Facts {
    pub(crate) const FORMAT: u32 = FORMAT;
}

/// A document for a unit.
///
/// # Errors
/// It is larger than could be read back.
pub(crate) fn encode<T: Serialize>(what: &str, document: &T) -> Result<Vec<u8>> {
    let bytes = serde_json::to_vec(document).doing(|| format!("{what} can not be written"))?;
    if bytes.len() as u64 > DOCUMENT_LIMIT_BYTES {
        return Err(Error::failed(format!("{what} would be larger than 64 MiB"))
            .hint("Split the source: give each its databases."));
    }
    Ok(bytes)
}

/// A document from a unit.
///
/// # Errors
/// It is damaged, or of a format newer than this program.
pub(crate) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    let damaged = |e: serde_json::Error| Error::damaged(format!("{what} can not be read")).because(e);
    let head: Head = serde_json::from_slice(bytes).map_err(damaged)?;
    if head.format > FORMAT {
        return Err(Error::failed(format!(
            "{what} has format {}, newer than this program",
            head.format
        ))
        .hint("Use a newer version."));
    }
    serde_json::from_slice(bytes).map_err(damaged)
}
