//! A real PocketBase: its own program, a data directory of its own, its web API.
//!
//! `LIFEBOAT_TEST_POCKETBASE_URL` and `LIFEBOAT_TEST_POCKETBASE_PASSWORD` name one that runs elsewhere
//! ([`PocketBase::elsewhere`]), as docker-compose.test.yml sets them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use reqwest::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::guard::{Guard, Start};
use super::{TempDir, binary, free_port, random_hex, run_ok, temp_dir};

/// How long it may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(30);
/// Its superuser in tests.
pub const SUPERUSER: &str = "admin@example.com";

/// A running PocketBase; ended when dropped.
pub struct PocketBase {
    url: String,
    password: String,
    client: reqwest::Client,
    token: String,
    guard: Option<Guard>,
    data: PathBuf,
    /// Held where the data directory is ours.
    home: Option<TempDir>,
}

impl PocketBase {
    /// Starts one with nothing in it but a superuser.
    ///
    /// # Panics
    /// It is not installed, or does not start.
    pub async fn start() -> Self {
        let home = temp_dir();
        let data = home.path().join("pb_data");
        let password = random_hex(16);
        // Its own command takes the password as an argument and in no other way.
        run_ok(Command::new(binary("pocketbase")).arg("--dir").arg(&data).args([
            "superuser",
            "upsert",
            SUPERUSER,
            &password,
        ]));
        Self::serve(data, password, Some(home)).await
    }

    /// Starts one on a data directory that exists (a restored one), with the superuser's password in it.
    ///
    /// # Panics
    /// It does not start, or the password does not open it.
    pub async fn start_on(data: &Path, password: &str) -> Self {
        Self::serve(data.to_owned(), password.to_owned(), None).await
    }

    /// The one that the environment names, if it names one: not ours to stop, its data not here.
    ///
    /// # Panics
    /// It does not answer, or the password does not open it.
    pub async fn elsewhere() -> Option<Self> {
        let url = std::env::var("LIFEBOAT_TEST_POCKETBASE_URL").ok()?;
        let password = std::env::var("LIFEBOAT_TEST_POCKETBASE_PASSWORD").expect("its password");
        let mut server = Self::new(PathBuf::new(), password, None);
        server.url = url;
        server.log_in().await;
        Some(server)
    }

    async fn serve(data: PathBuf, password: String, home: Option<TempDir>) -> Self {
        let mut server = Self::new(data, password, home);
        server.begin().await;
        server
    }

    fn new(data: PathBuf, password: String, home: Option<TempDir>) -> Self {
        let client = reqwest::Client::builder()
            .timeout(REQUEST)
            .no_proxy()
            .build()
            .expect("an HTTP client");
        Self {
            url: String::new(),
            password,
            client,
            token: String::new(),
            guard: None,
            data,
            home,
        }
    }

    /// Starts the program and logs in.
    async fn begin(&mut self) {
        // Another process may take the port between the look and the start.
        for _ in 0..3 {
            let address = format!("127.0.0.1:{}", free_port());
            self.url = format!("http://{address}");
            // Beside pb_data, so that what lies in it is what PocketBase itself puts there.
            let beside = self.data.parent().expect("a parent").to_owned();
            let mut arguments = vec!["--dir".into(), self.data.clone().into()];
            for (flag, name) in [
                ("--publicDir", "pb_public"),
                ("--hooksDir", "pb_hooks"),
                ("--migrationsDir", "pb_migrations"),
            ] {
                arguments.extend([flag.into(), beside.join(name).into()]);
            }
            arguments.extend(["serve".into(), "--http".into(), address.into()]);
            let guard = Guard::start(Start {
                program: binary("pocketbase"),
                arguments,
                environment: Vec::new(),
                log: beside.join("pocketbase.log"),
                end: "KILL",
                remove: self
                    .home
                    .as_ref()
                    .map(|h| h.path().to_owned())
                    .unwrap_or_default(),
            });
            if self.wait_until_healthy(&guard).await {
                self.guard = Some(guard);
                self.log_in().await;
                return;
            }
            eprintln!("PocketBase ended at once:\n{}", guard.log_tail());
            guard.leave_data();
        }
        panic!("PocketBase does not start");
    }

    async fn wait_until_healthy(&self, guard: &Guard) -> bool {
        let deadline = std::time::Instant::now() + PATIENCE;
        while guard.is_running() {
            let answer = self.client.get(format!("{}/api/health", self.url)).send().await;
            if answer.is_ok_and(|a| a.status() == StatusCode::OK) && guard.is_running() {
                return true;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "PocketBase does not answer:\n{}",
                guard.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    async fn log_in(&mut self) {
        let body = json!({ "identity": SUPERUSER, "password": self.password });
        let path = "/api/collections/_superusers/auth-with-password";
        let answer = self.request(Method::POST, path, Some(&body)).await;
        self.token = answer["token"].as_str().expect("a token").to_owned();
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> &str {
        &self.url
    }
    /// The superuser's password (its name is [`SUPERUSER`]).
    pub fn password(&self) -> &str {
        &self.password
    }
    /// Its `pb_data`.
    pub fn data_directory(&self) -> &Path {
        &self.data
    }
    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.running().pid()
    }

    /// Ends it in good order (SIGTERM). Its data stays until this is dropped.
    pub fn stop(&mut self) {
        self.end(Signal::TERM);
    }

    /// Ends it as a crash would (SIGKILL). Its data stays until this is dropped.
    pub fn kill(&mut self) {
        self.end(Signal::KILL);
    }

    /// Starts it again on the same data, at another port.
    pub async fn start_again(&mut self) {
        assert!(self.guard.is_none(), "it is running");
        self.begin().await;
    }

    fn end(&mut self, signal: Signal) {
        if let Some(guard) = self.guard.take() {
            guard.signal(signal);
            guard.wait_for_end(PATIENCE);
            guard.leave_data();
        }
    }

    fn running(&self) -> &Guard {
        self.guard.as_ref().expect("PocketBase is stopped")
    }

    /// A request as the superuser; the answer's JSON (null where there is none).
    ///
    /// # Panics
    /// No answer, or one that is no success; the message shows it.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Value {
        let mut request = self.authorized(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        json_of(request, path).await
    }

    fn authorized(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.url));
        if self.token.is_empty() {
            request
        } else {
            request.header("Authorization", &self.token)
        }
    }

    /// Makes a collection with `title` (text), `n` (number) and `doc` (one file), readable by everybody.
    pub async fn create_collection(&self, name: &str) {
        let body = json!({
            "name": name,
            "type": "base",
            "fields": [
                { "name": "title", "type": "text" },
                { "name": "n", "type": "number" },
                { "name": "doc", "type": "file", "maxSelect": 1, "maxSize": 64 << 20 },
            ],
            "listRule": "", "viewRule": "", "createRule": "", "updateRule": "", "deleteRule": "",
        });
        self.request(Method::POST, "/api/collections", Some(&body)).await;
    }

    /// Creates a record from JSON; gives the record.
    pub async fn create_record(&self, collection: &str, record: &Value) -> Value {
        let path = format!("/api/collections/{collection}/records");
        self.request(Method::POST, &path, Some(record)).await
    }

    /// Creates a record with a file in `doc`; gives the record.
    pub async fn create_record_with_file(
        &self,
        collection: &str,
        title: &str,
        n: i64,
        name: &str,
        content: &[u8],
    ) -> Value {
        let path = format!("/api/collections/{collection}/records");
        let boundary = format!("lifeboat-{}", random_hex(16));
        let mut body = Vec::new();
        for (field, value) in [("title", title.to_owned()), ("n", n.to_string())] {
            body.extend_from_slice(
                format!(
                    "--{boundary}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n{value}\r\n"
                )
                .as_bytes(),
            );
        }
        body.extend_from_slice(
            format!(
                "--{boundary}\r\nContent-Disposition: form-data; name=\"doc\"; filename=\"{name}\"\r\n\
                 Content-Type: application/octet-stream\r\n\r\n"
            )
            .as_bytes(),
        );
        body.extend_from_slice(content);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        let request = self
            .authorized(Method::POST, &path)
            .header(
                "Content-Type",
                format!("multipart/form-data; boundary={boundary}"),
            )
            .body(body);
        json_of(request, &path).await
    }

    /// Changes fields of a record; gives the record.
    pub async fn update_record(&self, collection: &str, id: &str, fields: &Value) -> Value {
        let path = format!("/api/collections/{collection}/records/{id}");
        self.request(Method::PATCH, &path, Some(fields)).await
    }

    /// Deletes a record, and with it its file.
    pub async fn delete_record(&self, collection: &str, id: &str) {
        let path = format!("/api/collections/{collection}/records/{id}");
        self.request(Method::DELETE, &path, None).await;
    }

    /// Every record of a collection, by id.
    pub async fn records(&self, collection: &str) -> Vec<Value> {
        let mut all = Vec::new();
        for page in 1.. {
            let path = format!("/api/collections/{collection}/records?perPage=500&sort=id&page={page}");
            let mut answer = self.request(Method::GET, &path, None).await;
            let Value::Array(items) = answer["items"].take() else {
                panic!("no items: {answer}");
            };
            all.extend(items);
            if page >= answer["totalPages"].as_i64().expect("a number of pages") {
                break;
            }
        }
        all
    }

    /// The bytes of a record's file, as PocketBase serves them.
    pub async fn file(&self, record: &Value) -> Vec<u8> {
        let part = |name: &str| {
            record[name]
                .as_str()
                .unwrap_or_else(|| panic!("no {name}: {record}"))
                .to_owned()
        };
        let path = format!(
            "/api/files/{}/{}/{}",
            part("collectionId"),
            part("id"),
            part("doc")
        );
        let answer = self
            .authorized(Method::GET, &path)
            .send()
            .await
            .expect("no answer");
        assert_eq!(answer.status(), StatusCode::OK, "GET {path}");
        answer.bytes().await.expect("a file").to_vec()
    }

    /// Makes a backup with PocketBase's own means, kept in pb_data.
    pub async fn create_backup(&self, name: &str) {
        self.request(Method::POST, "/api/backups", Some(&json!({ "name": name })))
            .await;
    }

    /// The names of PocketBase's own backups.
    pub async fn backups(&self) -> Vec<String> {
        let answer = self.request(Method::GET, "/api/backups", None).await;
        let items = answer.as_array().expect("a list");
        items
            .iter()
            .filter_map(|b| b["key"].as_str().map(str::to_owned))
            .collect()
    }
}

impl Drop for PocketBase {
    fn drop(&mut self) {
        // Before its directory goes.
        self.guard.take();
    }
}

async fn json_of(request: reqwest::RequestBuilder, path: &str) -> Value {
    let answer = request.send().await.unwrap_or_else(|e| panic!("{path}: {e}"));
    let status = answer.status();
    let text = answer.text().await.unwrap_or_else(|e| panic!("{path}: {e}"));
    assert!(status.is_success(), "{path}: {status}: {text}");
    if text.is_empty() {
        return Value::Null;
    }
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"))
}
