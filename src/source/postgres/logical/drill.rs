//! What `backup check` tells about drills of a Postgres source: server programs of its major version, or a given server.

use super::capture::optional;
use super::check::failed;
use super::{LogicalSettings, chosen, maintenance};
use crate::error::{Error, Kind, Result};
use crate::secret::SecretText;
use crate::source::postgres::client;
use crate::source::postgres::connect::Address;
use crate::source::postgres::scratch;
use crate::source::{DrillNeeds, DrillReady, Finding};

/// What is to be known of a source to find a target for it.
struct Asked {
    major: u32,
    system_identifier: Option<String>,
    databases: Vec<String>,
}

async fn ask(url: &SecretText, settings: &LogicalSettings) -> Result<Asked> {
    let address = Address::parse(url)?;
    let session = maintenance(&address).await?;
    let sql = "SELECT system_identifier::text FROM pg_catalog.pg_control_system()";
    let listed = chosen(&session, &address, settings).await?;
    Ok(Asked {
        major: session.version().await? / 10_000,
        system_identifier: optional(&session, sql).await?,
        databases: listed.into_iter().map(|l| l.database.name).collect(),
    })
}

/// What a drill would be made with. What is amiss with the source itself its own findings tell.
pub(super) async fn check(
    url: &SecretText,
    settings: &LogicalSettings,
    needs: &DrillNeeds<'_>,
) -> Result<DrillReady, Finding> {
    let wrong = |e: Error| failed("drill", &e);
    let asked = ask(url, settings).await.ok();
    if let Some(server) = needs.server {
        let (major, backed_up, databases) = match &asked {
            Some(of) => (Some(of.major), of.system_identifier.as_deref(), &of.databases[..]),
            None => (None, None, &[][..]),
        };
        let version = scratch::examine_given(server, major, backed_up, databases)
            .await
            .map_err(wrong)?;
        let found = client::find(settings.client_dir.as_deref()).await;
        let clients = found
            .as_deref()
            .map(|found| major.map(|m| client::for_dump(found, m)));
        return Ok(DrillReady {
            text: format!("a server of PostgreSQL {version}"),
            path: match clients {
                Ok(Some(Ok(clients))) => vec![clients.directory().to_owned()],
                _ => Vec::new(),
            },
        });
    }
    let Some(asked) = asked else {
        if scratch::places(needs.binaries).is_empty() {
            let none = "no PostgreSQL server programs to restore into: there are none here";
            return Err(wrong(Error::new(Kind::DrillCouldNotRun, none).hint(
                "Install those of the source's major version, or set binaries in the drill to their directory.",
            )));
        }
        return Err(Finding::warning(
            "drill",
            "not tried: the version of the server is not known",
            "Put right what is said of the source.",
        ));
    };
    let server = scratch::find(needs.binaries, asked.major).await.map_err(wrong)?;
    Ok(DrillReady {
        text: format!("PostgreSQL {}", server.version),
        path: vec![server.directory],
    })
}
