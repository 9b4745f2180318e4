//! What is in a database that a restore would meet, and taking back what an interrupted restore of ours has put there.

use super::prepare::Marker;
use crate::error::{Error, Result};
use crate::source::postgres::connect::{Session, value};
use crate::source::postgres::facts::MARKER_SCHEMA;
use crate::source::postgres::quote::ident;

/// How many things in the way are named.
const NAMED_IN_THE_WAY: usize = 5;

/// Catalogs of objects in schemas: name, column of the schema.
const IN_SCHEMAS: [(&str, &str); 13] = [
    ("pg_class", "relnamespace"),
    ("pg_proc", "pronamespace"),
    ("pg_type", "typnamespace"),
    ("pg_operator", "oprnamespace"),
    ("pg_opclass", "opcnamespace"),
    ("pg_opfamily", "opfnamespace"),
    ("pg_collation", "collnamespace"),
    ("pg_conversion", "connamespace"),
    ("pg_ts_config", "cfgnamespace"),
    ("pg_ts_dict", "dictnamespace"),
    ("pg_ts_parser", "prsnamespace"),
    ("pg_ts_template", "tmplnamespace"),
    ("pg_statistic_ext", "stxnamespace"),
];

/// Catalogs of objects of the database itself.
const IN_DATABASE: [&str; 9] = [
    "pg_event_trigger",
    "pg_publication",
    "pg_cast",
    "pg_transform",
    "pg_foreign_server",
    "pg_foreign_data_wrapper",
    "pg_language",
    "pg_am",
    "pg_default_acl",
];

/// Every object that a user made: oids from 16384 on are theirs. What belongs to an extension, or comes with another
/// object that is listed, is not. Columns: catalog, oid.
fn objects() -> String {
    let mut parts = vec![
        "SELECT 'pg_catalog.pg_namespace'::regclass, oid, oid FROM pg_catalog.pg_namespace WHERE nspname <> 'public'"
            .to_owned(),
    ];
    for (catalog, schema) in IN_SCHEMAS {
        let only = match catalog {
            "pg_class" => " WHERE relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND relpersistence <> 't'",
            _ => "",
        };
        parts.push(format!(
            "SELECT 'pg_catalog.{catalog}'::regclass, oid, {schema} FROM pg_catalog.{catalog}{only}"
        ));
    }
    for catalog in IN_DATABASE {
        parts.push(format!(
            "SELECT 'pg_catalog.{catalog}'::regclass, oid, NULL::oid FROM pg_catalog.{catalog}"
        ));
    }
    // A partition depends on its parent as an owned sequence on its column: it is named all the same. Default privileges
    // depend so on their schema, which may be public.
    format!(
        "SELECT o.classid, o.objid FROM ({}) o (classid, objid, place) \
         LEFT JOIN pg_catalog.pg_namespace n ON n.oid = o.place WHERE o.objid::int8 >= 16384 \
         AND (o.place IS NULL OR n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND n.nspname <> '{MARKER_SCHEMA}') \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = o.classid AND e.objid = o.objid \
         AND e.objsubid = 0 AND (e.deptype IN ('e', 'i') OR e.deptype = 'a' \
         AND e.refclassid <> 'pg_catalog.pg_namespace'::regclass AND NOT (e.classid = 'pg_catalog.pg_class'::regclass \
         AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = e.objid AND c.relkind <> 'S'))))",
        parts.join(" UNION ALL ")
    )
}

const SUBSCRIPTIONS: &str = "SELECT subname::text FROM pg_catalog.pg_subscription WHERE subdbid = \
     (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())";

/// What stands in the way of a restore, a few of it, in words.
pub(super) async fn in_the_way(session: &Session) -> Result<Vec<String>> {
    let sql = format!(
        "SELECT i.type, coalesce(i.identity, '') FROM ({}) o, \
         pg_catalog.pg_identify_object(o.classid, o.objid, 0) i \
         UNION ALL SELECT 'large object', l.oid::text FROM pg_catalog.pg_largeobject_metadata l \
         UNION ALL SELECT 'subscription', s.subname FROM ({SUBSCRIPTIONS}) s LIMIT {}",
        objects(),
        NAMED_IN_THE_WAY + 1
    );
    let rows = session.rows("look what is in the target", &sql, &[]).await?;
    let named =
        |row: &tokio_postgres::Row| Ok(format!("{} {:?}", value::<&str>(row, 0)?, value::<&str>(row, 1)?));
    rows.iter().map(named).collect()
}

/// The error of a database that holds something.
pub(super) fn not_empty(name: &str, found: &[String]) -> Error {
    let mut shown = found[..found.len().min(NAMED_IN_THE_WAY)].join(", ");
    if found.len() > NAMED_IN_THE_WAY {
        shown.push_str(" and more");
    }
    Error::usage(format!("database {name:?} is not empty: it holds {shown}"))
        .hint("Give a database that is empty or not there yet.")
}

/// Subscriptions go first and without their slots: those belong to another server, and a database with one can not be
/// dropped.
pub(super) async fn drop_subscriptions(session: &Session, doing: &str) -> Result<()> {
    for row in session.rows(doing, SUBSCRIPTIONS, &[]).await? {
        let name = ident(value(&row, 0)?);
        let sql = format!(
            "ALTER SUBSCRIPTION {name} DISABLE; ALTER SUBSCRIPTION {name} SET (slot_name = NONE); \
             DROP SUBSCRIPTION {name}"
        );
        session.run(doing, &sql).await?;
    }
    Ok(())
}

/// Empties a database that was empty before an interrupted restore of ours.
pub(super) async fn empty(session: &Session, marker: &Marker) -> Result<()> {
    let doing = "empty the incomplete database";
    // Event triggers would fire on all that follows; dropping one fires none.
    let sql = "SELECT evtname::text FROM pg_catalog.pg_event_trigger v WHERE NOT EXISTS \
               (SELECT FROM pg_catalog.pg_depend e WHERE e.classid = 'pg_catalog.pg_event_trigger'::regclass \
               AND e.objid = v.oid AND e.deptype = 'e')";
    for row in session.rows(doing, sql, &[]).await? {
        let name = ident(value(&row, 0)?);
        session
            .run(doing, &format!("DROP EVENT TRIGGER IF EXISTS {name}"))
            .await?;
    }
    drop_subscriptions(session, doing).await?;
    let sql = "SELECT extname::text FROM pg_catalog.pg_extension WHERE extname::text <> ALL ($1)";
    for row in session.rows(doing, sql, &[&marker.extensions]).await? {
        let name = ident(value(&row, 0)?);
        session
            .run(doing, &format!("DROP EXTENSION IF EXISTS {name} CASCADE"))
            .await?;
    }
    drop_default_privileges(session, doing).await?;
    drop_objects(session, doing).await?;
    loop {
        let sql = "SELECT count(lo_unlink(oid)) FROM \
                   (SELECT oid FROM pg_catalog.pg_largeobject_metadata LIMIT 1000) l";
        if value::<i64>(&session.row(doing, sql, &[]).await?, 0)? == 0 {
            break;
        }
    }
    let left = in_the_way(session).await?;
    if left.is_empty() {
        return session.run(doing, &format!("DROP SCHEMA {MARKER_SCHEMA}")).await;
    }
    Err(Error::failed(format!(
        "the incomplete database could not be emptied: {} is left",
        left.join(", ")
    )))
}

/// One object at a time (all at once would not fit the lock table), by the name that the server gives it.
async fn drop_objects(session: &Session, doing: &str) -> Result<()> {
    let sql = format!(
        "SELECT i.type, i.identity FROM ({}) o, pg_catalog.pg_identify_object(o.classid, o.objid, 0) i \
         WHERE i.identity IS NOT NULL AND o.classid <> 'pg_catalog.pg_default_acl'::regclass \
         ORDER BY o.classid <> 'pg_catalog.pg_publication'::regclass, o.classid <> 'pg_catalog.pg_class'::regclass, \
         o.classid = 'pg_catalog.pg_namespace'::regclass",
        objects()
    );
    for row in session.rows(doing, &sql, &[]).await? {
        let (kind, identity): (&str, &str) = (value(&row, 0)?, value(&row, 1)?);
        let named = match identity.strip_prefix("for ") {
            Some(rest) if kind == "transform" => {
                format!("FOR {}", rest.replacen(" on language ", " LANGUAGE ", 1))
            }
            _ => identity.to_owned(),
        };
        let gone = match kind {
            // What went with another may be written in words that no statement takes.
            "statistics object" => format!("DROP STATISTICS IF EXISTS {named}"),
            "foreign-data wrapper" => format!("DROP FOREIGN DATA WRAPPER IF EXISTS {named} CASCADE"),
            "publication" => format!("DROP PUBLICATION IF EXISTS {named}"),
            kind => format!("DROP {kind} IF EXISTS {named} CASCADE"),
        };
        session.run(doing, &gone).await?;
    }
    Ok(())
}

/// There is no statement that drops default privileges: they are gone when they are what they would be without.
async fn drop_default_privileges(session: &Session, doing: &str) -> Result<()> {
    let sql = "SELECT CASE d.defaclobjtype WHEN 'r' THEN 'TABLES' WHEN 'S' THEN 'SEQUENCES' WHEN 'f' THEN 'FUNCTIONS' \
               WHEN 'T' THEN 'TYPES' WHEN 'n' THEN 'SCHEMAS' ELSE 'LARGE OBJECTS' END, \
               quote_ident(pg_get_userbyid(d.defaclrole)), quote_ident(n.nspname), \
               ARRAY(SELECT DISTINCT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END \
               FROM aclexplode(d.defaclacl) a) \
               FROM pg_catalog.pg_default_acl d LEFT JOIN pg_catalog.pg_namespace n ON n.oid = d.defaclnamespace";
    for row in session.rows(doing, sql, &[]).await? {
        let (objects, owner): (&str, &str) = (value(&row, 0)?, value(&row, 1)?);
        let schema: Option<&str> = value(&row, 2)?;
        let begin = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner}");
        let mut statements = Vec::new();
        let place = schema.map(|s| format!(" IN SCHEMA {s}")).unwrap_or_default();
        for grantee in value::<Vec<String>>(&row, 3)? {
            statements.push(format!("{begin}{place} REVOKE ALL ON {objects} FROM {grantee}"));
        }
        if schema.is_none() {
            statements.push(format!("{begin} GRANT ALL ON {objects} TO {owner}"));
            match objects {
                "FUNCTIONS" => statements.push(format!("{begin} GRANT EXECUTE ON FUNCTIONS TO PUBLIC")),
                "TYPES" => statements.push(format!("{begin} GRANT USAGE ON TYPES TO PUBLIC")),
                _ => {}
            }
        }
        session.run(doing, &statements.join("; ")).await?;
    }
    Ok(())
}
