//! What is changed in a copy before PocketBase boots it: what could reach anything is off, and every key is another one.

use std::collections::BTreeMap;
use std::path::Path;

use aws_lc_rs::{aead, hmac};
use base64::Engine as _;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, Transaction, params};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::clock::World;
use crate::error::{Error, Kind, Result};
use crate::secret::SecretText;
use crate::source::pocketbase::facts;

/// Where nobody listens: mail that the copy would send ends here.
const NOWHERE_PORT: u16 = 1;
/// Steps of SQLite between two looks at whether the drill goes on.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;
/// For so long a token opens the copy.
const TOKEN_SECONDS: i64 = 3600;
/// The kinds of token that PocketBase signs with a collection's own secrets.
const TOKENS: [&str; 5] = [
    "authToken",
    "fileToken",
    "verificationToken",
    "passwordResetToken",
    "emailChangeToken",
];

/// What opens the copy, and what it must serve.
pub(super) struct Access {
    pub(super) token: String,
    /// Rows of the collections that have records, by name.
    pub(super) rows: BTreeMap<String, u64>,
}

fn sql(e: rusqlite::Error) -> Error {
    Error::failed("the restored data.db can not be used").because(e)
}

/// Turns off what could reach anything, and makes a superuser's token from what is in the database (a password would
/// have to be an argument). Nothing of it is in the backup.
pub(super) fn neutralise(
    data: &Path,
    settings_key: Option<&SecretText>,
    cancel: &CancellationToken,
    world: &World,
) -> Result<Access> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(data, flags).map_err(sql)?;
    tame(&mut connection, cancel).map_err(sql)?;
    let change = connection.transaction().map_err(sql)?;
    if let Some(text) = facts::settings(&change).map_err(sql)? {
        let settings = match serde_json::from_slice::<Value>(&text) {
            Ok(plain) if plain.is_object() => plain,
            _ => decrypted(&text, settings_key)?,
        };
        // Not encrypted again: the copy is served without the key.
        change
            .execute(
                "UPDATE _params SET value = ?1 WHERE id = 'settings'",
                [quiet(settings).to_string().into_bytes()],
            )
            .map_err(sql)?;
    }
    let (collection, secret) = other_keys(&change, world)?;
    let known = change
        .query_row("SELECT id FROM _superusers ORDER BY id LIMIT 1", [], |r| {
            r.get::<_, String>(0)
        })
        .optional()
        .map_err(sql)?;
    // A token is signed with both keys: what opens the copy opens nothing else.
    let key = random_key(world)?;
    let mut rows = BTreeMap::new();
    {
        let mut statement = change
            .prepare("SELECT name FROM _collections WHERE type <> 'view' ORDER BY name")
            .map_err(sql)?;
        let names = statement.query_map([], |r| r.get::<_, String>(0)).map_err(sql)?;
        for name in names {
            let name = name.map_err(sql)?;
            let count = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
            let count: i64 = change.query_row(&count, [], |r| r.get(0)).map_err(sql)?;
            rows.insert(name, u64::try_from(count).unwrap_or(0));
        }
    }
    let id = match known {
        Some(id) => {
            let update = "UPDATE _superusers SET tokenKey = ?2 WHERE id = ?1";
            change.execute(update, params![id, key]).map_err(sql)?;
            id
        }
        None => {
            let id = world.ulid()?.to_string()[..15].to_lowercase();
            let insert = "INSERT INTO _superusers (id, email, password, tokenKey) VALUES (?1, ?2, 'x', ?3)";
            change
                .execute(insert, params![id, format!("{id}@drill.invalid"), key])
                .map_err(sql)?;
            *rows.entry("_superusers".to_owned()).or_default() += 1;
            id
        }
    };
    change.commit().map_err(sql)?;
    connection.close().map_err(|(_, e)| sql(e))?;
    let until = world.clock.now().timestamp() + TOKEN_SECONDS;
    let claims = json!({
        "id": id, "type": "auth", "collectionId": collection, "exp": until, "refreshable": false,
    });
    Ok(Access {
        token: token(&claims, &format!("{key}{secret}")),
        rows,
    })
}

/// Has a restored database do nothing of its own: no trigger, no view, no function in its schema; and end when the drill does.
pub(super) fn tame(connection: &mut Connection, cancel: &CancellationToken) -> rusqlite::Result<()> {
    for (what, on) in [
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
    ] {
        connection.set_db_config(what, on)?;
    }
    let cancel = cancel.clone();
    connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || cancel.is_cancelled()))
}

/// Settings that PocketBase encrypts with the key in the variable of `--encryptionEnv`: base64 of nonce, AES-GCM and tag.
fn decrypted(text: &[u8], key: Option<&SecretText>) -> Result<Value> {
    let key = key.ok_or_else(|| {
        Error::new(
            Kind::DrillCouldNotRun,
            "the settings are encrypted, so nothing tells what a copy would reach",
        )
        .hint("Set settings_key in the source: what PocketBase has in the variable of --encryptionEnv.")
    })?;
    let wrong = || {
        Error::failed("the settings can not be decrypted with settings_key")
            .hint("Set settings_key to what PocketBase has in the variable of --encryptionEnv.")
    };
    let sealed = base64::engine::general_purpose::STANDARD
        .decode(text.trim_ascii())
        .map_err(|_| wrong())?;
    let (nonce, sealed) = sealed.split_at_checked(aead::NONCE_LEN).ok_or_else(wrong)?;
    let opening = aead::UnboundKey::new(&aead::AES_256_GCM, key.expose().trim().as_bytes())
        .map(aead::LessSafeKey::new)
        .map_err(|_| wrong())?;
    let nonce = aead::Nonce::try_assume_unique_for_key(nonce).map_err(|_| wrong())?;
    let mut sealed = sealed.to_vec();
    let plain = opening
        .open_in_place(nonce, aead::Aad::empty(), &mut sealed)
        .map_err(|_| wrong())?;
    serde_json::from_slice::<Value>(plain)
        .ok()
        .filter(Value::is_object)
        .ok_or_else(wrong)
}

/// Gives every collection of accounts other secrets, and takes its ways to log in elsewhere: a token that the copy makes
/// opens nothing but the copy. Gives the id of the superusers' collection, and its new secret.
fn other_keys(change: &Transaction<'_>, world: &World) -> Result<(String, String)> {
    let mut all = Vec::new();
    {
        let mut statement = change
            .prepare("SELECT id, name, options FROM _collections WHERE type = 'auth'")
            .map_err(sql)?;
        let rows = statement
            .query_map([], |r| {
                Ok((
                    r.get::<_, String>(0)?,
                    r.get::<_, String>(1)?,
                    r.get::<_, String>(2)?,
                ))
            })
            .map_err(sql)?;
        for row in rows {
            all.push(row.map_err(sql)?);
        }
    }
    let mut superusers = None;
    for (id, name, options) in all {
        let parsed = serde_json::from_str::<Value>(&options);
        let Some(mut options) = parsed.ok().filter(Value::is_object) else {
            return Err(Error::failed(format!(
                "the options of the collection {name} are no JSON"
            )));
        };
        let secret = random_key(world)?;
        for of in TOKENS {
            // One that this version does not have is none of the copy's.
            if let Some(token) = options.get_mut(of).and_then(Value::as_object_mut) {
                token.insert("secret".to_owned(), Value::from(secret.clone()));
            }
        }
        if let Some(oauth) = options.get_mut("oauth2").and_then(Value::as_object_mut) {
            oauth.insert("enabled".to_owned(), Value::from(false));
        }
        change
            .execute(
                "UPDATE _collections SET options = ?2 WHERE id = ?1",
                params![id, options.to_string()],
            )
            .map_err(sql)?;
        if name == "_superusers" {
            superusers = Some((id, secret));
        }
    }
    superusers.ok_or_else(|| Error::failed("there is no collection of superusers"))
}

fn random_key(world: &World) -> Result<String> {
    let mut bytes = [0; 32];
    world.random.fill(&mut bytes)?;
    Ok(crate::types::hex(&bytes))
}

/// Settings that reach nothing: no mail, no bucket, no schedule, no rule that locks a drill out.
pub(super) fn quiet(mut settings: Value) -> Value {
    // With SMTP off PocketBase would take the host's sendmail; so it is on, and leads nowhere.
    settings["smtp"] = json!({"enabled": true, "host": "127.0.0.1", "port": NOWHERE_PORT});
    settings["backups"] = json!({"cron": "", "cronMaxKeep": 0, "s3": {"enabled": false}});
    settings["s3"] = json!({"enabled": false});
    settings["superuserIPs"] = json!([]);
    settings["rateLimits"] = json!({"enabled": false, "rules": []});
    settings["trustedProxy"] = json!({"headers": []});
    settings
}

/// A JWT with HMAC-SHA256 (RFC 7519), as PocketBase signs them: with the record's key and the collection's secret.
pub(super) fn token(claims: &Value, key: &str) -> String {
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let signed = format!(
        "{}.{}",
        engine.encode(json!({"alg": "HS256", "typ": "JWT"}).to_string()),
        engine.encode(claims.to_string())
    );
    let tag = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()),
        signed.as_bytes(),
    );
    format!("{signed}.{}", engine.encode(tag.as_ref()))
}
