//! What `backup check` tells about a Postgres source: reach, version, client programs, databases, access.

use super::{LEFT_OUT_HINT, LogicalSettings, chosen, inspect, left_out, maintenance};
use crate::error::{Error, Result};
use crate::secret::SecretText;
use crate::source::postgres::client::{self, LARGE_OBJECT_HINT};
use crate::source::postgres::connect::{Address, Session, value};
use crate::source::{Finding, Level};
use crate::types::size;

pub(super) fn failed(name: &str, error: &Error) -> Finding {
    Finding {
        name: name.into(),
        level: Level::Error,
        text: error.chain(),
        hint: error.hint_text().map(str::to_owned),
    }
}

/// All findings; the first that makes the rest pointless ends them.
pub(super) async fn check(url: &SecretText, settings: &LogicalSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err((name, error)) = look(url, settings, &mut findings).await {
        findings.push(failed(name, &error));
    }
    findings
}

async fn look(
    url: &SecretText,
    settings: &LogicalSettings,
    findings: &mut Vec<Finding>,
) -> Result<(), (&'static str, Error)> {
    let at = |name: &'static str| move |e: Error| (name, e);
    let address = Address::parse(url).map_err(at("url"))?;
    let session = maintenance(&address).await.map_err(at("server"))?;
    let version = session.version().await.map_err(at("server"))?;
    findings.push(server(&address, &session, version).await.map_err(at("server"))?);
    match clients(settings, version / 10_000).await {
        Ok(finding) => findings.push(finding),
        Err(error) => findings.push(failed("client", &error)),
    }
    if inspect::reads_passwords(&session).await.map_err(at("roles"))? {
        findings.push(Finding::ok("roles", "the passwords of roles can be read"));
    } else {
        findings.push(Finding::warning(
            "roles",
            "the passwords of roles can not be read, so restored roles have none",
            "Use a superuser, or grant SELECT on pg_authid, if they are wanted.",
        ));
    }
    let listed = chosen(&session, &address, settings)
        .await
        .map_err(at("databases"))?;
    let names: Vec<String> = listed.iter().map(|l| format!("{:?}", l.database.name)).collect();
    let bytes: i64 = listed.iter().filter_map(|l| l.size).sum();
    let size = size(u64::try_from(bytes).unwrap_or_default());
    let many = if names.len() > 20 {
        format!(", … ({} in all)", names.len())
    } else {
        String::new()
    };
    let shown = names[..names.len().min(20)].join(", ");
    findings.push(Finding::ok(
        "databases",
        format!("{shown}{many}, {size} together"),
    ));
    let told = left_out(&session, &address, settings)
        .await
        .map_err(at("databases"))?;
    findings.extend(
        told.into_iter()
            .map(|t| Finding::warning("databases", t, LEFT_OUT_HINT)),
    );
    for listed in &listed {
        match access(&address.with_database(&listed.database.name)).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(failed("access", &error)),
        }
    }
    Ok(())
}

async fn server(address: &Address, session: &Session, version: u32) -> Result<Finding> {
    let row = session
        .row(
            "ask for the server's version",
            "SELECT current_setting('server_version'), pg_is_in_recovery()",
            &[],
        )
        .await?;
    let (text, standby): (String, bool) = (value(&row, 0)?, value(&row, 1)?);
    if version < 130_000 {
        return Ok(Finding::error(
            "server",
            format!("{} is Postgres {text}", address.shown()),
            "Versions from 13 on are supported.",
        ));
    }
    let role = if standby { ", a standby" } else { "" };
    Ok(Finding::ok(
        "server",
        format!("{} is Postgres {text}{role}", address.shown()),
    ))
}

async fn clients(settings: &LogicalSettings, major: u32) -> Result<Finding> {
    let found = client::find(settings.client_dir.as_deref()).await?;
    let chosen = client::for_dump(&found, major)?;
    let text = format!("pg_dump {} in {}", chosen.version, chosen.directory().display());
    if chosen.major >= 17 && major < 17 {
        return Ok(Finding::warning(
            "client",
            format!("{text}: its dumps can only be restored into servers of version 17 or newer"),
            format!("Install postgresql-client-{major}, or set client_dir to it."),
        ));
    }
    Ok(Finding::ok("client", text))
}

/// What the role can not read in one database.
async fn access(address: &Address) -> Result<Vec<Finding>> {
    let name = address.database.clone().unwrap_or_default();
    let session = address.connect().await?;
    let mut findings = Vec::new();
    let sql = "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c \
               JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
               WHERE c.relkind IN ('r', 'p', 'S', 'm') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
               AND n.nspname <> 'information_schema' \
               AND NOT (has_schema_privilege(n.oid, 'USAGE') AND CASE c.relkind \
               WHEN 'S' THEN has_sequence_privilege(c.oid, 'SELECT') ELSE has_table_privilege(c.oid, 'SELECT') END) \
               ORDER BY 1, 2 LIMIT 1";
    if let Some(row) = session
        .rows("look for unreadable tables", sql, &[])
        .await?
        .first()
    {
        findings.push(Finding::error(
            "access",
            format!(
                "database {name:?}: {:?}.{:?} can not be read",
                value::<&str>(row, 0)?,
                value::<&str>(row, 1)?
            ),
            "Grant the role pg_read_all_data (version 14 on) or SELECT on all tables and sequences and USAGE on their schemas.",
        ));
    }
    let sql = "SELECT c.oid::regclass::text FROM pg_catalog.pg_class c \
               WHERE c.relrowsecurity AND row_security_active(c.oid) ORDER BY 1 LIMIT 1";
    if let Some(row) = session
        .rows("look for row-level security", sql, &[])
        .await?
        .first()
    {
        findings.push(Finding::error(
            "access",
            format!(
                "database {name:?}: row-level security hides rows of {} from the role",
                value::<&str>(row, 0)?
            ),
            "Give the role BYPASSRLS, or use the owner.",
        ));
    }
    findings.extend(large_objects(&session, &name).await?);
    if findings.is_empty() {
        findings.push(Finding::ok("access", format!("database {name:?} can be read")));
    }
    Ok(findings)
}

/// Large objects that the dump program could not read. It asks the server as any reader does: no role that reads all
/// tables helps, before the version that says so itself.
async fn large_objects(session: &Session, database: &str) -> Result<Option<Finding>> {
    let readable = if session.version().await? >= 180_000 {
        "pg_catalog.has_largeobject_privilege(l.oid, 'SELECT')"
    } else {
        "(pg_has_role(l.lomowner, 'USAGE') OR EXISTS (SELECT FROM aclexplode(l.lomacl) a \
         WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE'))))"
    };
    let sql = format!(
        "SELECT count(*), min(l.oid::int8) FROM pg_catalog.pg_largeobject_metadata l \
         WHERE current_setting('lo_compat_privileges') <> 'on' AND NOT {readable}"
    );
    let row = session
        .row("look for unreadable large objects", &sql, &[])
        .await?;
    let hidden: i64 = value(&row, 0)?;
    if hidden == 0 {
        return Ok(None);
    }
    let first: i64 = value(&row, 1)?;
    Ok(Some(Finding::error(
        "access",
        format!(
            "database {database:?}: the role may not read {hidden} of its large objects ({first} is one), so no dump succeeds"
        ),
        LARGE_OBJECT_HINT,
    )))
}
