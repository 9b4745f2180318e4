//! What a drill compares beyond what every restore does: the schema, object by object, and the roles.

use std::collections::{BTreeMap, BTreeSet};

use super::choice::Documents;
use super::inspect::{self, of_user};
use crate::error::Result;
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::postgres::facts::Role;

/// What a point says of its schema and roles.
#[derive(Debug)]
pub(in crate::source::postgres) struct Recorded {
    /// Digest of the schema, by database; none where the point was made before there were any.
    schemas: BTreeMap<String, Option<String>>,
    /// Roles that databases need.
    needed: BTreeSet<String>,
    roles: Vec<Role>,
}

impl Recorded {
    pub(super) fn of(documents: &Documents) -> Self {
        let facts = documents.facts.databases.iter();
        let databases = documents.cluster.databases.iter();
        Self {
            schemas: facts.map(|d| (d.name.clone(), d.schema_digest.clone())).collect(),
            needed: databases
                .flat_map(|d| d.roles.iter().chain([&d.owner]).cloned())
                .filter(|name| !name.starts_with("pg_"))
                .collect(),
            roles: documents.cluster.roles.clone(),
        }
    }

    /// Whether the point says anything of the schema of its databases.
    pub(in crate::source::postgres) fn knows_schemas(&self) -> bool {
        self.schemas.values().any(Option::is_some)
    }

    /// What is different in a cluster that was restored, a sentence each; first of the schemas, then of the roles.
    pub(in crate::source::postgres) async fn differences(
        &self,
        address: &Address,
    ) -> Result<(Vec<String>, Vec<String>)> {
        let (mut of_schemas, mut of_roles) = (Vec::new(), Vec::new());
        for (database, recorded) in &self.schemas {
            let Some(recorded) = recorded else { continue };
            let session = address.with_database(database).connect().await?;
            let found = schema_digest(&session).await?;
            session.close().await;
            if found != *recorded {
                of_schemas.push(format!(
                    "database {database:?}: its schema has the digest {found}, recorded is {recorded}"
                ));
            }
        }
        let session = address.with_database("postgres").connect().await?;
        let found = inspect::roles(&session, false).await?;
        session.close().await;
        let by_name: BTreeMap<&str, &Role> = found.iter().map(|r| (r.name.as_str(), r)).collect();
        for name in &self.needed {
            if !by_name.contains_key(name.as_str()) {
                of_roles.push(format!("role {name:?} is missing"));
            }
        }
        for recorded in &self.roles {
            // The superuser of the cluster was there before; others are made as they were.
            let Some(found) = by_name
                .get(recorded.name.as_str())
                .filter(|_| recorded.name != "postgres")
            else {
                continue;
            };
            if rights(found) != rights(recorded) {
                of_roles.push(format!("role {:?} has other rights than recorded", recorded.name));
            }
        }
        Ok((of_schemas, of_roles))
    }
}

fn rights(role: &Role) -> [bool; 7] {
    [
        role.superuser,
        role.inherit,
        role.create_role,
        role.create_database,
        role.login,
        role.replication,
        role.bypass_rls,
    ]
}

/// A digest of a database's schema: columns, keys, indexes, functions, triggers, policies, types; by what the catalog holds of
/// them. Not by the expressions that Postgres writes out for them, which may differ after one turn of dump and restore.
pub(super) async fn schema_digest(session: &Session) -> Result<String> {
    let relation = of_user("pg_class", "c");
    let of_relation = "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
    let columns = "(SELECT string_agg(coalesce(a.attname::text, '()'), ',' ORDER BY u.place)
         FROM unnest($KEYS) WITH ORDINALITY u (number, place)
         LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = $OF AND a.attnum = u.number AND u.number > 0)";
    let columns = |keys: &str, of: &str| columns.replace("$KEYS", keys).replace("$OF", of);
    let lines = [
        format!(
            "SELECT concat_ws('|', 'column', n.nspname, c.relname, c.relkind, a.attname, format_type(a.atttypid, a.atttypmod),
                 a.attnotnull, a.atthasdef, a.attidentity, a.attgenerated)
             FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid {of_relation}
             WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
                 AND c.relpersistence <> 't' AND {relation}"
        ),
        format!(
            "SELECT concat_ws('|', 'constraint', n.nspname, c.relname, k.conname, k.contype, k.condeferrable, k.convalidated, {}, f.relname, {})
             FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid {of_relation}
             LEFT JOIN pg_catalog.pg_class f ON f.oid = k.confrelid
             WHERE k.contype IN ('p', 'u', 'f', 'x', 'c') AND k.conparentid = 0 AND c.relpersistence <> 't' AND {relation}",
            columns("k.conkey", "k.conrelid"),
            columns("k.confkey", "k.confrelid"),
        ),
        format!(
            "SELECT concat_ws('|', 'index', n.nspname, c.relname, x.relname, m.amname, i.indisunique, {})
             FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid {of_relation}
             JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid JOIN pg_catalog.pg_am m ON m.oid = x.relam
             WHERE i.indisvalid AND c.relpersistence <> 't' AND {relation}",
            columns("i.indkey::int2[]", "i.indrelid"),
        ),
        format!(
            "SELECT concat_ws('|', 'function', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid),
                 format_type(p.prorettype, NULL), l.lanname, p.prokind, p.provolatile, p.prosecdef, md5(p.prosrc))
             FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
             JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE {}",
            of_user("pg_proc", "p")
        ),
        format!(
            "SELECT concat_ws('|', 'trigger', n.nspname, c.relname, t.tgname, t.tgtype, t.tgenabled, p.proname)
             FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid {of_relation}
             JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
             WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND {relation}"
        ),
        format!(
            "SELECT concat_ws('|', 'policy', n.nspname, c.relname, o.polname, o.polcmd, o.polpermissive)
             FROM pg_catalog.pg_policy o JOIN pg_catalog.pg_class c ON c.oid = o.polrelid {of_relation} WHERE {relation}"
        ),
        format!(
            "SELECT concat_ws('|', 'type', n.nspname, t.typname, t.typtype, (SELECT string_agg(e.enumlabel::text, ',' ORDER BY e.enumsortorder)
                 FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid))
             FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
             WHERE t.typtype IN ('e', 'd') AND {}",
            of_user("pg_type", "t")
        ),
    ];
    let sql = format!(
        "SELECT encode(sha256(convert_to(coalesce(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\"), ''), 'UTF8')), 'hex')
         FROM ({}) a (line)",
        lines.join(" UNION ALL ")
    );
    value(&session.row("digest the schema", &sql, &[]).await?, 0)
}
