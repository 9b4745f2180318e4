//! An operator's place: a policy, a repository, a real Postgres and a real PocketBase, and the binary.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::pocketbase::PocketBase;
use crate::harness::postgres::PostgresServer;
use crate::harness::seaweedfs::SeaweedFs;
use crate::harness::{self, Said, TempDir};

/// Where the repository is.
pub enum Store {
    Directory,
    S3(SeaweedFs),
}

pub struct Site {
    pub directory: TempDir,
    pub server: &'static PostgresServer,
    pub database: String,
    pub app: PocketBase,
    pub store: Store,
}

impl Site {
    pub async fn new(store: Store) -> Self {
        let server = PostgresServer::newest();
        let database = server.create_database();
        let app = PocketBase::start().await;
        app.create_collection("notes").await;
        if let Store::S3(weed) = &store {
            weed.create_bucket("backups", false).await;
        }
        let site = Self {
            directory: harness::temp_dir(),
            server,
            database,
            app,
            store,
        };
        let key = site.path("key");
        let generated = harness::run_ok(site.plain().args(["key", "generate"]).arg(&key));
        let recipient = std::fs::read_to_string(&key)
            .unwrap()
            .lines()
            .find_map(|l| l.strip_prefix("# public key: ").map(str::to_owned))
            .unwrap();
        assert!(generated.stdout.contains(&recipient));
        assert!(
            !generated.stdout.contains("AGE-SECRET-KEY"),
            "an identity is never shown"
        );
        site.write_policy(&recipient, "journey");
        site
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write_policy(&self, recipient: &str, environment: &str) {
        let repository = match &self.store {
            Store::Directory => format!("url = \"file://{}\"", self.path("repository").display()),
            Store::S3(weed) => format!(
                "url = \"s3://backups/shop\"\nendpoint = \"{}\"\nregion = \"us-east-1\"\n\
                 access_key_id = {{ env = \"T_KEY_ID\" }}\nsecret_access_key = {{ env = \"T_KEY\" }}",
                weed.endpoint
            ),
        };
        let prune = match &self.store {
            Store::Directory => "[prune]".to_owned(),
            Store::S3(_) => {
                "[prune]\naccess_key_id = { env = \"T_KEY_ID\" }\nsecret_access_key = { env = \"T_KEY\" }"
                    .to_owned()
            }
        };
        let policy = format!(
            r#"
environment = "{environment}"
timezone = "Europe/Berlin"

[repository]
{repository}

[encryption]
recipients = ["{recipient}"]
identity = {{ file = "{key}" }}

{prune}

[state]
dir = "{state}"

[source.orders]
kind = "postgres"
url = {{ env = "T_ORDERS_URL" }}
client_dir = "{clients}"
schedule = "@hourly"
retention = "standard"

[source.app]
kind = "pocketbase"
path = "{app}"
schedule = "@hourly"
retention = "standard"

[retention.standard]
window = "7d"
daily = 7
"#,
            key = self.path("key").display(),
            state = self.path("state").display(),
            clients = self.server.client_dir().display(),
            app = self.app.data_directory().display(),
        );
        harness::write_file(self.directory.path(), "policy.toml", policy);
    }

    /// The binary with the secrets in its environment, without a policy.
    pub fn plain(&self) -> Command {
        let mut command = harness::lifeboat();
        command
            .env("T_ORDERS_URL", self.server.url(&self.database))
            .env("T_SERVER_URL", self.server.url("postgres"))
            .env("LIFEBOAT_STATE", self.path("state"));
        if let Store::S3(weed) = &self.store {
            command
                .env("T_KEY_ID", &weed.access_key)
                .env("T_KEY", &weed.secret_key);
        }
        command
    }

    /// The binary with the policy.
    pub fn backup(&self, arguments: &[&str]) -> Command {
        let mut command = self.plain();
        command
            .arg("--policy")
            .arg(self.path("policy.toml"))
            .args(arguments);
        command
    }

    /// Runs a command that must succeed, and gives its document.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let said = harness::run_ok(self.backup(&["--json"]).args(arguments));
        said.json()
    }

    /// Runs a command that must end with a code, and gives its error.
    pub fn refused(&self, arguments: &[&str], code: i32) -> Value {
        let said = harness::run_code(self.backup(&["--json"]).args(arguments), code);
        let document = said.json();
        assert_eq!(document["format"], json!(1));
        let error = document["error"].clone();
        assert!(
            error["message"].as_str().is_some_and(|m| !m.is_empty()),
            "{document}"
        );
        error
    }

    pub fn sql(&self, sql: &str) -> String {
        self.server.psql(&self.database, sql).trim().to_owned()
    }

    /// A plain copy of the repository, for restore.py.
    pub async fn repository_copy(&self) -> PathBuf {
        match &self.store {
            Store::Directory => self.path("repository"),
            Store::S3(weed) => {
                let copy = self.path("copy");
                download(&weed.client(), "backups", "shop/", &copy).await;
                copy
            }
        }
    }
}

async fn download(client: &aws_sdk_s3::Client, bucket: &str, prefix: &str, to: &Path) {
    let mut pages = client
        .list_objects_v2()
        .bucket(bucket)
        .prefix(prefix)
        .into_paginator()
        .send();
    while let Some(page) = pages.next().await {
        for object in page.unwrap().contents() {
            let key = object.key().unwrap();
            let got = client.get_object().bucket(bucket).key(key).send().await.unwrap();
            let bytes = got.body.collect().await.unwrap().into_bytes();
            harness::write_file(to, key.strip_prefix(prefix).unwrap(), bytes);
        }
    }
}

/// `restore.py` on a copy of the repository.
pub fn restore_py(repository: &Path, arguments: &[&str]) -> Said {
    let mut command = Command::new("python3");
    command
        .arg(harness::project().join("scripts/restore.py"))
        .arg(repository)
        .args(arguments);
    harness::run_ok(&mut command)
}
