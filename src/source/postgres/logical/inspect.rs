//! Asking a server what it is, and a database what is in it.

use std::collections::{BTreeMap, BTreeSet};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::source::postgres::connect::{Session, value};
use crate::source::postgres::facts::{
    Database, DatabaseFacts, DatabaseSetting, Extension, Grant, MARKER_SCHEMA, Membership, Relation,
    RelationKind, Role, Sequence, SequenceValue,
};
use crate::source::postgres::quote::{literal, qualified, table_pattern};

/// How many tables are locked, or sequences read, with one statement.
const BATCH: usize = 100;

/// Not of the system, not of an extension, not ours: what a dump holds. `$` stands for the object's alias.
pub(super) fn of_user(class: &str, alias: &str) -> String {
    format!(
        "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname <> '{MARKER_SCHEMA}' \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.{class}'::regclass \
         AND e.objid = {alias}.oid AND e.deptype = 'e')"
    )
}

/// Whether the role may read the stored passwords of roles.
pub(super) async fn reads_passwords(session: &Session) -> Result<bool> {
    let sql = "SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT')";
    value(&session.row("ask for privileges", sql, &[]).await?, 0)
}

/// The roles of the server, without the predefined ones.
pub(super) async fn roles(session: &Session, with_passwords: bool) -> Result<Vec<Role>> {
    let (table, password) = if with_passwords {
        ("pg_authid", "r.rolpassword")
    } else {
        ("pg_roles", "NULL::text")
    };
    let sql = format!(
        "SELECT r.rolname, r.rolsuper, r.rolinherit, r.rolcreaterole, r.rolcreatedb, r.rolcanlogin, \
         r.rolreplication, r.rolbypassrls, r.rolconnlimit, {password}, r.rolvaliduntil::text, \
         (SELECT s.setconfig FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase = 0 AND s.setrole = r.oid) \
         FROM pg_catalog.{table} r WHERE r.rolname !~ '^pg_' ORDER BY r.rolname COLLATE \"C\""
    );
    let mut list = Vec::new();
    for row in session.rows("list the roles", &sql, &[]).await? {
        list.push(Role {
            name: value(&row, 0)?,
            superuser: value(&row, 1)?,
            inherit: value(&row, 2)?,
            create_role: value(&row, 3)?,
            create_database: value(&row, 4)?,
            login: value(&row, 5)?,
            replication: value(&row, 6)?,
            bypass_rls: value(&row, 7)?,
            connection_limit: value(&row, 8)?,
            password: value(&row, 9)?,
            valid_until: value(&row, 10)?,
            settings: value::<Option<Vec<String>>>(&row, 11)?.unwrap_or_default(),
        });
    }
    Ok(list)
}

/// Which role is in which.
pub(super) async fn memberships(session: &Session, version: u32) -> Result<Vec<Membership>> {
    let options = if version >= 160_000 {
        "bool_or(m.inherit_option), bool_or(m.set_option)"
    } else {
        "NULL::bool, NULL::bool"
    };
    let sql = format!(
        "SELECT g.rolname, u.rolname, bool_or(m.admin_option), {options} FROM pg_catalog.pg_auth_members m \
         JOIN pg_catalog.pg_roles g ON g.oid = m.roleid JOIN pg_catalog.pg_roles u ON u.oid = m.member \
         GROUP BY 1, 2 ORDER BY 1, 2"
    );
    let mut list = Vec::new();
    for row in session.rows("list the memberships of roles", &sql, &[]).await? {
        list.push(Membership {
            group: value(&row, 0)?,
            member: value(&row, 1)?,
            admin: value(&row, 2)?,
            inherit: value(&row, 3)?,
            set: value(&row, 4)?,
        });
    }
    Ok(list)
}

/// The names of tablespaces made by users.
pub(super) async fn tablespaces(session: &Session) -> Result<Vec<String>> {
    let sql = "SELECT spcname FROM pg_catalog.pg_tablespace WHERE spcname !~ '^pg_' ORDER BY 1";
    let rows = session.rows("list the tablespaces", sql, &[]).await?;
    rows.iter().map(|row| value(row, 0)).collect()
}

/// A database and its size in bytes, if the role may know.
pub(super) struct Listed {
    pub(super) database: Database,
    pub(super) size: Option<i64>,
}

/// The databases that allow connections and are no templates, described.
pub(super) async fn databases(session: &Session, version: u32) -> Result<Vec<Listed>> {
    let provider = "CASE d.datlocprovider WHEN 'i' THEN 'icu' WHEN 'b' THEN 'builtin' ELSE 'libc' END";
    let (provider, locale, rules, collation) = match version {
        170_000.. => (provider, "d.datlocale", "d.daticurules", "d.datcollversion"),
        160_000.. => (provider, "d.daticulocale", "d.daticurules", "d.datcollversion"),
        150_000.. => (provider, "d.daticulocale", "NULL::text", "d.datcollversion"),
        _ => ("'libc'", "NULL::text", "NULL::text", "NULL::text"),
    };
    let sql = format!(
        "SELECT d.datname, pg_get_userbyid(d.datdba), pg_encoding_to_char(d.encoding), d.datcollate::text, \
         d.datctype::text, {provider}, {locale}, {rules}, {collation}, d.datconnlimit, \
         shobj_description(d.oid, 'pg_database'), d.datacl IS NOT NULL, d.oid::int8, \
         CASE WHEN has_database_privilege(d.oid, 'CONNECT') THEN pg_database_size(d.oid) END \
         FROM pg_catalog.pg_database d WHERE d.datallowconn AND NOT d.datistemplate ORDER BY d.datname"
    );
    let mut list = Vec::new();
    for row in session.rows("list the databases", &sql, &[]).await? {
        let oid: i64 = value(&row, 12)?;
        let own_grants: bool = value(&row, 11)?;
        let name: String = value(&row, 0)?;
        list.push(Listed {
            database: Database {
                unit: String::new(),
                owner: value(&row, 1)?,
                encoding: value(&row, 2)?,
                collate: value(&row, 3)?,
                ctype: value(&row, 4)?,
                provider: value(&row, 5)?,
                locale: value(&row, 6)?,
                icu_rules: value(&row, 7)?,
                collation_version: value(&row, 8)?,
                connection_limit: value(&row, 9)?,
                comment: value(&row, 10)?,
                grants: if own_grants {
                    Some(grants(session, oid).await?)
                } else {
                    None
                },
                settings: settings(session, oid).await?,
                roles: Vec::new(),
                snapshot_at: chrono::DateTime::UNIX_EPOCH,
                name,
            },
            size: value(&row, 13)?,
        });
    }
    Ok(list)
}

async fn grants(session: &Session, oid: i64) -> Result<Vec<Grant>> {
    let sql = "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, a.privilege_type, \
               a.is_grantable FROM pg_catalog.pg_database d, aclexplode(d.datacl) a WHERE d.oid::int8 = $1";
    let rows = session.rows("read a database's privileges", sql, &[&oid]).await?;
    let grant = |row: &tokio_postgres::Row| {
        Ok(Grant {
            role: value(row, 0)?,
            privilege: value(row, 1)?,
            grantable: value(row, 2)?,
        })
    };
    rows.iter().map(grant).collect()
}

async fn settings(session: &Session, oid: i64) -> Result<Vec<DatabaseSetting>> {
    let sql = "SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole)::text END, s.setconfig \
               FROM pg_catalog.pg_db_role_setting s WHERE s.setdatabase::int8 = $1 ORDER BY s.setrole";
    let mut list = Vec::new();
    for row in session.rows("read a database's settings", sql, &[&oid]).await? {
        let role: Option<String> = value(&row, 0)?;
        for setting in value::<Vec<String>>(&row, 1)? {
            list.push(DatabaseSetting {
                role: role.clone(),
                setting,
            });
        }
    }
    Ok(list)
}

/// The roles that own something in this database or are granted something there. The role that made the cluster owns
/// things without a record of it, so it is looked for in every catalog that names roles.
pub(super) async fn roles_of_database(session: &Session) -> Result<Vec<String>> {
    let doing = "list the roles of a database";
    let sql = "SELECT DISTINCT pg_get_userbyid(d.refobjid)::text FROM pg_catalog.pg_shdepend d \
         WHERE d.refclassid = 'pg_catalog.pg_authid'::regclass \
         AND d.dbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";
    let rows = session.rows(doing, sql, &[]).await?;
    let names: Result<Vec<String>> = rows.iter().map(|row| value(row, 0)).collect();
    let mut names = names?;
    let sql = format!(
        "SELECT pg_get_userbyid(10)::text WHERE {}",
        names_first_role(session, doing).await?
    );
    for row in session.rows(doing, &sql, &[]).await? {
        names.push(value(&row, 0)?);
    }
    names.retain(|n| !n.starts_with("pg_"));
    names.sort();
    names.dedup();
    Ok(names)
}

/// A condition: whether anything that a dump holds is owned by the role that made the cluster, or names it in its
/// privileges. Members of extensions are left out, and the system's own objects but `public`, as in the dump.
async fn names_first_role(session: &Session, doing: &str) -> Result<String> {
    // An owner, the roles of a policy, privileges: what such a column is called differs, its type tells.
    let sql = "SELECT c.relname::text, a.attname::text, a.atttypid::regtype::text, \
         (SELECT k.attname::text FROM pg_catalog.pg_attribute k WHERE k.attrelid = c.oid \
         AND k.attname IN ('oid', 'attrelid') ORDER BY k.attname DESC LIMIT 1) \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid \
         WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relkind = 'r' AND a.attnum > 0 \
         AND (NOT c.relisshared OR c.relname = 'pg_subscription') \
         AND c.relname NOT IN ('pg_extension', 'pg_init_privs') \
         AND has_column_privilege(c.oid, a.attnum, 'SELECT') \
         AND (a.atttypid = 'aclitem[]'::regtype OR a.attname = 'polroles' \
         OR a.atttypid = 'oid'::regtype AND a.attname ~ '(owner|role|user)$')";
    let mut any = vec!["false".to_owned()];
    for row in session.rows(doing, sql, &[]).await? {
        let (catalog, column, kind): (&str, &str, &str) = (value(&row, 0)?, value(&row, 1)?, value(&row, 2)?);
        let key: Option<&str> = value(&row, 3)?;
        let named = match kind {
            "aclitem[]" => format!(
                "EXISTS (SELECT FROM aclexplode(o.{column}) x WHERE x.grantee = 10 OR x.grantor = 10)"
            ),
            "oid" => format!("o.{column} = 10"),
            _ => format!("10 = ANY (o.{column})"),
        };
        let of_user = match (catalog, key) {
            ("pg_subscription", _) => {
                "o.subdbid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"
                    .to_owned()
            }
            // Any large object is a user's, whatever its number.
            ("pg_largeobject_metadata", _) => "true".to_owned(),
            (_, Some(key)) => {
                let class = if key == "attrelid" { "pg_class" } else { catalog };
                let public = if catalog == "pg_namespace" {
                    " OR o.nspname = 'public'"
                } else {
                    ""
                };
                let tables = match catalog {
                    "pg_class" => " AND o.relkind NOT IN ('t', 'i', 'I') AND o.relpersistence <> 't'",
                    "pg_namespace" => " AND o.nspname !~ '^pg_'",
                    _ => "",
                };
                format!(
                    "(o.{key}::int8 >= 16384{public}){tables} AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e \
                     WHERE e.classid = 'pg_catalog.{class}'::regclass AND e.objid = o.{key} AND e.deptype = 'e')"
                )
            }
            (_, None) => continue,
        };
        any.push(format!(
            "EXISTS (SELECT FROM pg_catalog.{catalog} o WHERE {of_user} AND {named})"
        ));
    }
    Ok(any.join(" OR "))
}

/// Databases that a run passes over whatever the policy says, and why: the server's own two templates are not meant.
pub(super) async fn never_taken(session: &Session) -> Result<Vec<(String, &'static str)>> {
    let sql = "SELECT datname::text, datallowconn FROM pg_catalog.pg_database \
         WHERE (datistemplate OR NOT datallowconn) AND datname NOT IN ('template0', 'template1') ORDER BY 1";
    let why = |row: &tokio_postgres::Row| {
        let why = match value(row, 1)? {
            true => "it is a template",
            false => "it allows no connections",
        };
        Ok((value(row, 0)?, why))
    };
    let rows = session.rows("list the databases", sql, &[]).await?;
    rows.iter().map(why).collect()
}

/// How much is looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// Patterns of tables that are left out.
    pub(super) exclude: Vec<String>,
    /// A standby has no content of unlogged tables.
    pub(super) standby: bool,
    /// Count rows of this table only; of all without.
    pub(super) only_table: Option<(String, String)>,
}

/// Takes the facts of the session's database, in its transaction: the lists first, then a lock on each table so that
/// none is dropped, then the rows of each, exactly. Counting reads each table once, beside the dump.
///
/// # Errors
/// Something can not be read.
pub(super) async fn facts(
    session: &Session,
    name: &str,
    scope: &Scope,
    cancel: &CancellationToken,
) -> Result<DatabaseFacts> {
    let (excluded, unmatched) = excluded(session, &scope.exclude).await?;
    refuse_dangling(session, name, &excluded).await?;
    let mut facts = DatabaseFacts {
        name: name.to_owned(),
        schemas: schemas(session).await?,
        relations: relations(session, &excluded).await?,
        sequences: sequences(session, &excluded).await?,
        extensions: extensions(session).await?,
        large_objects: count(session, "SELECT count(*) FROM pg_catalog.pg_largeobject_metadata").await?,
        counts: counts(session).await?,
        schema_digest: Some(super::proof::schema_digest(session).await?),
        unmatched,
    };
    let counted = |r: &Relation| {
        let wanted = scope
            .only_table
            .as_ref()
            .is_none_or(|(schema, name)| r.schema == *schema && r.name == *name);
        wanted && r.kind == RelationKind::Table && !r.excluded && !(r.unlogged && scope.standby)
    };
    let names: Vec<String> = facts
        .relations
        .iter()
        .filter(|r| counted(r))
        .map(|r| qualified(&r.schema, &r.name))
        .collect();
    for batch in names.chunks(BATCH) {
        let sql = format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", batch.join(", ONLY "));
        session
            .rows_unless(cancel, "lock tables for reading", &sql)
            .await?;
    }
    for relation in facts.relations.iter_mut().filter(|r| counted(r)) {
        let table = qualified(&relation.schema, &relation.name);
        let doing = format!("count the rows of {table}");
        let sql = format!("SELECT count(*) FROM ONLY {table}");
        let rows = session.rows_unless(cancel, &doing, &sql).await?;
        let row = rows.first().ok_or_else(|| Error::failed("a count gave no row"))?;
        relation.rows = Some(value::<i64>(row, 0)?.try_into().unwrap_or_default());
    }
    Ok(facts)
}

async fn count(session: &Session, sql: &str) -> Result<u64> {
    let row = session.row("count objects", sql, &[]).await?;
    Ok(value::<i64>(&row, 0)?.try_into().unwrap_or_default())
}

/// The oids of tables and sequences that the patterns leave out. Visible is what the database's own search path shows,
/// as for the dump program.
/// Also the patterns that match nothing.
async fn excluded(session: &Session, patterns: &[String]) -> Result<(BTreeSet<i64>, Vec<String>)> {
    let mut found = BTreeSet::new();
    let mut unmatched = Vec::new();
    if patterns.is_empty() {
        return Ok((found, unmatched));
    }
    let doing = "find the tables left out";
    session.run(doing, "RESET search_path").await?;
    for pattern in patterns {
        let (schema, table) = table_pattern(pattern);
        let place = match schema {
            Some(schema) => format!("n.nspname::text OPERATOR(pg_catalog.~) {}", literal(&schema)),
            None => "pg_catalog.pg_table_is_visible(c.oid)".to_owned(),
        };
        let sql = format!(
            "SELECT c.oid::pg_catalog.int8 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
             ON n.oid OPERATOR(pg_catalog.=) c.relnamespace \
             WHERE c.relname::pg_catalog.text OPERATOR(pg_catalog.~) {} AND {place} \
             UNION SELECT d.objid::pg_catalog.int8 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n \
             ON n.oid OPERATOR(pg_catalog.=) c.relnamespace JOIN pg_catalog.pg_depend d \
             ON d.refobjid OPERATOR(pg_catalog.=) c.oid AND d.deptype IN ('a', 'i') \
             AND d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
             AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
             JOIN pg_catalog.pg_class q ON q.oid OPERATOR(pg_catalog.=) d.objid AND q.relkind = 'S' \
             WHERE c.relname::pg_catalog.text OPERATOR(pg_catalog.~) {} AND {place}",
            literal(&table),
            literal(&table)
        );
        let rows = session.rows(doing, &sql, &[]).await?;
        if rows.is_empty() {
            unmatched.push(pattern.clone());
        }
        for row in rows {
            found.insert(value::<i64>(&row, 0)?);
        }
    }
    session.run(doing, "SET search_path = pg_catalog").await?;
    Ok((found, unmatched))
}

/// Rows that point to rows left out would stop every restore.
async fn refuse_dangling(session: &Session, database: &str, excluded: &BTreeSet<i64>) -> Result<()> {
    if excluded.is_empty() {
        return Ok(());
    }
    let sql = "SELECT k.conrelid::int8, k.confrelid::int8, k.conname::text, k.conrelid::regclass::text, \
               k.confrelid::regclass::text FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' ORDER BY 4, 3";
    for row in session.rows("look at foreign keys", sql, &[]).await? {
        let (from, to): (i64, i64) = (value(&row, 0)?, value(&row, 1)?);
        if excluded.contains(&to) && !excluded.contains(&from) {
            let (key, from, to): (String, String, String) =
                (value(&row, 2)?, value(&row, 3)?, value(&row, 4)?);
            return Err(Error::failed(format!(
                "database {database:?}: exclude leaves out the rows of {to}, which {from} points to ({key}): no restore could succeed"
            ))
            .hint(format!("Exclude {from} as well, or keep {to}.")));
        }
    }
    Ok(())
}

async fn schemas(session: &Session) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT n.nspname FROM pg_catalog.pg_namespace n WHERE {} ORDER BY n.nspname COLLATE \"C\"",
        of_user("pg_namespace", "n")
    );
    let rows = session.rows("list the schemas", &sql, &[]).await?;
    rows.iter().map(|row| value(row, 0)).collect()
}

async fn relations(session: &Session, excluded: &BTreeSet<i64>) -> Result<Vec<Relation>> {
    let sql = format!(
        "SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence = 'u', c.relispopulated, c.oid::int8 \
         FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relpersistence <> 't' AND {} \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"",
        of_user("pg_class", "c")
    );
    let mut list = Vec::new();
    for row in session.rows("list the tables", &sql, &[]).await? {
        let kind = match value::<&str>(&row, 2)? {
            "r" => RelationKind::Table,
            "p" => RelationKind::PartitionedTable,
            "v" => RelationKind::View,
            "m" => RelationKind::MaterializedView,
            _ => RelationKind::ForeignTable,
        };
        list.push(Relation {
            schema: value(&row, 0)?,
            name: value(&row, 1)?,
            kind,
            rows: None,
            unlogged: value(&row, 3)?,
            excluded: excluded.contains(&value::<i64>(&row, 5)?),
            populated: match kind {
                RelationKind::MaterializedView => Some(value(&row, 4)?),
                _ => None,
            },
        });
    }
    Ok(list)
}

async fn extensions(session: &Session) -> Result<Vec<Extension>> {
    let sql = "SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY extname COLLATE \"C\"";
    let extension = |row: &tokio_postgres::Row| {
        Ok(Extension {
            name: value(row, 0)?,
            version: value(row, 1)?,
        })
    };
    session
        .rows("list the extensions", sql, &[])
        .await?
        .iter()
        .map(extension)
        .collect()
}

async fn sequences(session: &Session, excluded: &BTreeSet<i64>) -> Result<Vec<Sequence>> {
    let sql = format!(
        "SELECT n.nspname, c.relname, c.oid::int8 FROM pg_catalog.pg_class c \
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'S' AND c.relpersistence = 'p' AND {} \
         ORDER BY n.nspname COLLATE \"C\", c.relname COLLATE \"C\"",
        of_user("pg_class", "c")
    );
    let mut list = Vec::new();
    for row in session.rows("list the sequences", &sql, &[]).await? {
        list.push(Sequence {
            schema: value(&row, 0)?,
            name: value(&row, 1)?,
            before: SequenceValue {
                last_value: 0,
                is_called: false,
            },
            after: None,
            excluded: excluded.contains(&value::<i64>(&row, 2)?),
        });
    }
    let values = sequence_values(session, &list).await?;
    for (sequence, value) in list.iter_mut().zip(values) {
        sequence.before = value;
    }
    Ok(list)
}

/// Where sequences stand now, in their order. Excluded ones are not read.
///
/// # Errors
/// One can not be read, or is gone.
pub(super) async fn sequence_values(session: &Session, list: &[Sequence]) -> Result<Vec<SequenceValue>> {
    let nothing = SequenceValue {
        last_value: 0,
        is_called: false,
    };
    let mut values = vec![nothing; list.len()];
    let numbered: Vec<(usize, &Sequence)> = list.iter().enumerate().filter(|(_, s)| !s.excluded).collect();
    for batch in numbered.chunks(BATCH) {
        let parts: Vec<String> = batch
            .iter()
            .map(|(n, s)| {
                let table = qualified(&s.schema, &s.name);
                format!("SELECT {n}::int8, last_value, is_called FROM {table}")
            })
            .collect();
        let sql = parts.join(" UNION ALL ");
        for row in session.rows("read the sequences", &sql, &[]).await? {
            let at = usize::try_from(value::<i64>(&row, 0)?).unwrap_or(usize::MAX);
            if let Some(slot) = values.get_mut(at) {
                *slot = SequenceValue {
                    last_value: value(&row, 1)?,
                    is_called: value(&row, 2)?,
                };
            }
        }
    }
    Ok(values)
}

/// Objects that are counted rather than listed. Only those that every version counts alike: no constraints or triggers
/// that come with a partition, none of the NOT NULL constraints that 18 lists, no invalid indexes.
async fn counts(session: &Session) -> Result<BTreeMap<String, u64>> {
    let relation = of_user("pg_class", "c");
    let from_relation = "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";
    let queries = [
        (
            "functions",
            format!(
                "SELECT count(*) FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
                 WHERE {}",
                of_user("pg_proc", "p")
            ),
        ),
        (
            "indexes",
            format!(
                "SELECT count(*) FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid \
                 {from_relation} WHERE i.indisvalid AND c.relpersistence <> 't' AND {relation}"
            ),
        ),
        (
            "constraints",
            format!(
                "SELECT count(*) FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
                 {from_relation} WHERE k.contype IN ('p', 'u', 'f', 'x', 'c') AND k.conparentid = 0 \
                 AND c.relpersistence <> 't' AND {relation}"
            ),
        ),
        (
            "triggers",
            format!(
                "SELECT count(*) FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
                 {from_relation} WHERE NOT t.tgisinternal AND t.tgparentid = 0 AND {relation}"
            ),
        ),
        (
            "policies",
            format!(
                "SELECT count(*) FROM pg_catalog.pg_policy o JOIN pg_catalog.pg_class c ON c.oid = o.polrelid \
                 {from_relation} WHERE {relation}"
            ),
        ),
    ];
    let mut list = BTreeMap::new();
    for (name, sql) in queries {
        list.insert(name.to_owned(), count(session, &sql).await?);
    }
    Ok(list)
}
