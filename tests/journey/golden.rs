//! The golden repositories: how one is made, and that real servers take what comes out of them.

#[path = "golden/evidence.rs"]
mod evidence;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::clock::World;
use lifeboat::jobs::Session;
use lifeboat::jobs::backup::{Engine, open_source};
use lifeboat::repository::generation::{KeyRing, parse_identities};
use lifeboat::repository::reader::OpenPoint;
use lifeboat::secret::SecretText;
use lifeboat::types::{RunId, SourceName};
use serde_json::{Value, json};

use crate::harness::golden::{self, Expected, Golden, Point};
use crate::harness::pocketbase::{PocketBase, SUPERUSER};
use crate::harness::postgres::PostgresServer;
use crate::harness::{self, Said, TempDir};

/// A table whose name is a trap, as SQL spells it.
const HOSTILE: &str = r#""Robert'); DROP TABLE ""orders"";--
 é""#;
const SOURCES: [&str; 3] = ["app", "orders", "shop"];
/// What is asked of the database, at every point and after every restore.
fn questions() -> [String; 5] {
    [
        "select count(*), sum(id), md5(string_agg(note, ',' order by id)) from orders".to_owned(),
        format!("select string_agg(x, '|' order by x) from {HOSTILE}"),
        "select last_value, is_called from numbers".to_owned(),
        "select md5(lo_get(loid)) from (select distinct loid from pg_largeobject) x".to_owned(),
        "select count(*) from pg_class where relnamespace = 'public'::regnamespace and relkind = 'i'"
            .to_owned(),
    ]
}

struct Maker {
    directory: TempDir,
    server: PostgresServer,
    app: PocketBase,
    points: Vec<Point>,
    evidence: Vec<Value>,
    proven: BTreeMap<String, u64>,
}

impl Maker {
    async fn new() -> Self {
        let server = PostgresServer::start(15);
        server.psql("postgres", "create database shop");
        let app = PocketBase::start().await;
        app.create_collection("notes").await;
        let maker = Self {
            directory: harness::temp_dir(),
            server,
            app,
            points: Vec::new(),
            evidence: Vec::new(),
            proven: BTreeMap::new(),
        };
        for name in ["identity", "second-identity"] {
            harness::run_ok(
                harness::lifeboat()
                    .args(["key", "generate"])
                    .arg(maker.path(name)),
            );
        }
        maker.make_signing_key();
        maker
    }
    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
    fn write_policy(&self, keys: &[&str]) {
        let recipients: Vec<String> = keys.iter().map(|k| recipient(&self.path(k))).collect();
        let policy = format!(
            r#"
environment = "golden"
[repository]
url = "file://{repository}"
[encryption]
recipients = {recipients:?}
identity = {{ file = "{identity}" }}
[prune]
[state]
dir = "{state}"
[source.orders]
kind = "postgres"
url = {{ env = "T_URL" }}
client_dir = "{clients}"
retention = "two"
[source.app]
kind = "pocketbase"
path = "{app}"
[source.shop]
kind = "pocketbase"
url = "{url}"
superuser = {{ identity = {{ env = "T_SUPERUSER" }}, password = {{ env = "T_PASSWORD" }} }}
[retention.two]
daily = 1
{drills}"#,
            repository = self.path("repository").display(),
            identity = self.path("identity").display(),
            state = self.path("state").display(),
            clients = self.server.client_dir().display(),
            app = self.app.data_directory().display(),
            url = self.app.url(),
            drills = evidence::drills(&self.path("signing.key")),
        );
        harness::write_file(self.directory.path(), "policy.toml", policy);
    }
    fn secrets(&self) -> BTreeMap<&'static str, String> {
        BTreeMap::from([
            ("T_URL", self.server.url("shop")),
            ("T_SUPERUSER", SUPERUSER.to_owned()),
            ("T_PASSWORD", self.app.password().to_owned()),
        ])
    }
    fn backup(&self, arguments: &[&str]) -> Command {
        let mut command = harness::lifeboat();
        command
            .envs(self.secrets())
            .args(["--json", "--policy"])
            .arg(self.path("policy.toml"))
            .args(arguments);
        command
    }
    fn json(&self, arguments: &[&str]) -> Value {
        harness::run_ok(&mut self.backup(arguments)).json()
    }
    fn session(&self) -> Session {
        let secrets = self.secrets();
        let lookup = move |name: &str| secrets.get(name).cloned();
        let policy = lifeboat::policy::load(&self.path("policy.toml"), &lookup).unwrap();
        Session::new(World::system(), policy, Arc::new(lookup))
    }

    async fn answers(&self, source: &str) -> BTreeMap<String, String> {
        if source == "orders" {
            let ask = |q: String| (q.clone(), self.server.psql("shop", &q));
            return questions().into_iter().map(ask).collect();
        }
        served_answers(&self.app).await
    }

    /// Takes points of sources with the binary, restores each, and remembers what it saw.
    async fn take(&mut self, sources: &[&str]) {
        for source in sources {
            let answers = self.answers(source).await;
            let document = self.json(&["run", source]);
            let run = document["runs"][0]["run"].as_str().unwrap().to_owned();
            let to = self.path(&format!("restored-{run}"));
            self.json(&[
                "restore",
                source,
                "--at-point",
                &run,
                "--to",
                to.to_str().unwrap(),
            ]);
            let files = golden::digests(&harness::tree(&to));
            self.remember(source, &run, files, answers).await;
        }
    }

    async fn remember(
        &mut self,
        source: &str,
        run: &str,
        files: BTreeMap<String, String>,
        answers: BTreeMap<String, String>,
    ) {
        let repository = self.session().open_for_writing().await.unwrap();
        let name: SourceName = source.parse().unwrap();
        let commit = repository
            .commit(&name, run.parse().unwrap())
            .await
            .unwrap()
            .unwrap();
        let document = serde_json::to_value(&commit).unwrap();
        self.points.push(Point {
            source: source.to_owned(),
            kind: commit.kind,
            run: run.to_owned(),
            at: document["at"].as_str().unwrap().to_owned(),
            generation: commit.generation.id.to_string(),
            parent: commit.parent.map(|p| p.to_string()),
            manifest_depth: commit.manifest_depth,
            partial: commit.partial,
            tombstoned: false,
            held: false,
            damaged: false,
            files,
            answers,
        });
    }

    /// A run of the app that is cut after every unit, as one is that takes too long.
    async fn take_cut(&mut self) {
        let session = self.session();
        let name: SourceName = "app".parse().unwrap();
        let policy = session.policy.sources[&name].clone();
        let source = open_source(&session, &name, &policy).unwrap();
        let repository = session.open_for_writing().await.unwrap();
        let answers = self.answers("app").await;
        let mut engine = Engine::new(&session, repository.clone(), &name, &policy, None).unwrap();
        engine.cut_after = Duration::ZERO;
        let taken = engine.take_point(&*source).await.unwrap();
        let catalog = repository.catalog(&name).await.unwrap();
        let text = std::fs::read_to_string(self.path("identity")).unwrap();
        let known: Vec<String> = self.points.iter().map(|p| p.run.clone()).collect();
        for point in catalog.points.values() {
            let run = point.commit.run.to_string();
            if known.contains(&run) {
                continue;
            }
            let identities = parse_identities(&SecretText::new(text.clone()), "the identity").unwrap();
            let mut keys = KeyRing::new(identities);
            let open = OpenPoint::open(&repository, &name, &point.commit, &mut keys)
                .await
                .unwrap();
            let mut content = open.content().unwrap();
            let mut files = Vec::new();
            use lifeboat::source::PointContent as _;
            while let Some(unit) = content.next().await.unwrap() {
                let mut bytes = Vec::new();
                while let Some(part) = content.read().await.unwrap() {
                    bytes.extend_from_slice(&part);
                }
                files.push((unit.name.to_string(), bytes));
            }
            // A restore compares with it and does not write it.
            files.retain(|(name, _)| name != "facts.json");
            let last = point.commit.run == taken.commit.run;
            let answers = if last { answers.clone() } else { BTreeMap::new() };
            self.remember("app", &run, golden::digests(&files), answers).await;
        }
        assert!(self.points.iter().any(|p| p.partial), "the run was not cut");
    }

    /// Changes a byte of the first pack of a run, and lets verify find it.
    fn damage(&mut self, source: &str) {
        let point = self.points.iter_mut().rfind(|p| p.source == source).unwrap();
        point.damaged = true;
        point.files.clear();
        let pack = format!("repository/sources/{source}/runs/{}/0.age", point.run);
        let pack = self.directory.path().join(pack);
        let mut bytes = std::fs::read(&pack).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&pack, bytes).unwrap();
        harness::run_code(&mut self.backup(&["verify"]), 21);
    }

    /// Puts it where it is kept; nothing is ever overwritten.
    fn keep(self, to: &Path) {
        std::fs::create_dir(to).unwrap();
        for name in ["identity", "second-identity"] {
            let key = std::fs::read_to_string(self.path(name)).unwrap();
            let said = "# A throwaway key, made for this fixture alone: it opens nothing else.\n";
            harness::write_file(to, name, format!("{said}{key}"));
        }
        for name in ["signing.key", "signing.pub"] {
            harness::write_file(to, name, std::fs::read(self.path(name)).unwrap());
        }
        for (name, bytes) in harness::tree(&self.path("repository")) {
            harness::write_file(&to.join("repository"), &name, bytes);
        }
        let expected = Expected {
            made_by: format!("lifeboat {}", env!("CARGO_PKG_VERSION")),
            environment: "golden".to_owned(),
            pocketbase_password: self.app.password().to_owned(),
            points: self.points,
            evidence: self.evidence,
            proven: self.proven,
        };
        let text = serde_json::to_string_pretty(&expected).unwrap() + "\n";
        harness::write_file(to, "expected.json", text);
    }
}

fn recipient(key: &Path) -> String {
    let text = std::fs::read_to_string(key).unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix("# public key: "));
    line.unwrap().to_owned()
}

/// The text of every record's file, by the record's title.
async fn served_answers(app: &PocketBase) -> BTreeMap<String, String> {
    let mut answers = BTreeMap::new();
    for record in app.records("notes").await {
        let text = String::from_utf8(app.file(&record).await).unwrap();
        answers.insert(record["title"].as_str().unwrap().to_owned(), text);
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "makes the next tests/fixtures/golden-N; run it when a build writes something that no golden repository holds"]
async fn make_the_golden_repository() {
    let mut maker = Maker::new().await;
    maker.server.psql(
        "shop",
        &format!(
            "create table orders (id int primary key, note text);
             insert into orders select n, md5(n::text) from generate_series(1, 9000) n;
             create table {HOSTILE} (x text); insert into {HOSTILE} values ('a%s\\'), (E'b\\n\\t''');
             create sequence numbers; select nextval('numbers'); select nextval('numbers');
             select lo_from_bytea(0, convert_to(repeat('a large object ', 3000), 'UTF8'))"
        ),
    );
    let note = async |app: &PocketBase, title: &str| {
        let text = format!("the file of {title}");
        app.create_record_with_file("notes", title, 1, "a.txt", text.as_bytes())
            .await
    };
    let first = note(&maker.app, "first").await;
    maker.write_policy(&["identity"]);
    maker.json(&["init"]);
    maker.take(&SOURCES).await;
    maker.damage("shop");

    note(&maker.app, "second").await;
    maker.server.psql(
        "shop",
        "delete from orders where id = 8000; select nextval('numbers')",
    );
    maker.take(&SOURCES).await;

    // A new generation, which draws on packs of the old one.
    maker.json(&["key", "rotate", "--yes"]);
    maker
        .app
        .delete_record("notes", first["id"].as_str().unwrap())
        .await;
    note(&maker.app, "third").await;
    maker
        .server
        .psql("shop", "insert into orders values (20000, 'the last one')");
    maker.take(&SOURCES).await;

    let oldest = |maker: &Maker, source: &str| maker.points.iter().position(|p| p.source == source).unwrap();
    let held = oldest(&maker, "app");
    let run: RunId = maker.points[held].run.parse().unwrap();
    lifeboat::jobs::hold::add(&maker.session(), run, "golden@example.org", "kept for good")
        .await
        .unwrap();
    maker.points[held].held = true;
    let pruned = maker.json(&["prune"]);
    let expired = oldest(&maker, "orders");
    assert_eq!(pruned["expire"].as_array().unwrap().len(), 1, "{pruned:#}");
    assert_eq!(pruned["expire"][0]["run"], json!(maker.points[expired].run));
    maker.points[expired].tombstoned = true;

    note(&maker.app, "fourth").await;
    maker.take_cut().await;
    maker.write_policy(&["identity", "second-identity"]);
    maker.json(&["key", "rewrap", "--yes"]);
    maker.drill();

    let next = (1..).map(|n| golden::home().join(format!("golden-{n}")));
    let to = next.into_iter().find(|path| !path.exists()).unwrap();
    maker.keep(&to);
}

/// The binary on a copy, without a policy.
fn on(copied: &golden::Copied, arguments: &[&str]) -> Command {
    let mut command = harness::lifeboat();
    command
        .env("LIFEBOAT_STATE", copied.repository().with_file_name("state"))
        .arg("--json")
        .args(arguments)
        .arg("--repository")
        .arg(copied.repository());
    command
}

fn restore(copied: &golden::Copied, point: &Point, to: &str) -> Said {
    let mut command = on(
        copied,
        &["restore", &point.source, "--at-point", &point.run, "--to", to],
    );
    harness::run(command.arg("--identity").arg(copied.identity()))
}

fn each_golden(each: impl Fn(&Golden, &golden::Copied, &Path)) {
    for golden in golden::all() {
        let directory = harness::temp_dir();
        let copied = golden.copy(&directory.path().join("copy"));
        each(&golden, &copied, directory.path());
    }
}

#[test]
fn the_binary_lists_verifies_and_restores_the_golden_repositories() {
    each_golden(|golden, copied, directory| {
        let list = harness::run_ok(&mut on(copied, &["list"])).json();
        let mut listed: Vec<(String, bool, bool, bool)> = Vec::new();
        for source in list["sources"].as_array().unwrap() {
            for point in source["points"].as_array().unwrap() {
                listed.push((
                    point["run"].as_str().unwrap().to_owned(),
                    point["held"] == json!(true),
                    !point["tombstoned"].is_null(),
                    !point["damaged"].is_null(),
                ));
            }
        }
        let whole = golden.expected.points.iter().filter(|p| !p.partial);
        let mut expected: Vec<_> = whole
            .clone()
            .map(|p| (p.run.clone(), p.held, p.tombstoned, p.damaged))
            .collect();
        listed.sort();
        expected.sort();
        assert_eq!(listed, expected);

        let mut verify = on(copied, &["verify", "--content"]);
        let said = harness::run_code(verify.arg("--identity").arg(copied.identity()), 21).json();
        let broken: Vec<&str> = whole
            .clone()
            .filter(|p| p.damaged)
            .map(|p| p.run.as_str())
            .collect();
        let told = said["damaged"].as_array().unwrap();
        assert!(!told.is_empty() && said["missing"] == json!([]), "{said:#}");
        for problem in told {
            let key = problem["key"].as_str().unwrap();
            assert!(broken.iter().any(|run| key.contains(run)), "{said:#}");
        }

        for point in whole {
            let to = directory.join(&point.run);
            let said = restore(copied, point, to.to_str().unwrap());
            if !point.is_offered() {
                assert!([20, 21].contains(&said.code), "{said}");
                continue;
            }
            assert_eq!(said.code, 0, "{said}");
            assert_eq!(golden::digests(&harness::tree(&to)), point.files, "{}", point.run);
        }
    });
}

#[test]
fn the_golden_dumps_restore_into_a_real_server() {
    each_golden(|golden, copied, directory| {
        // One of its own: a restore makes roles.
        for server in [PostgresServer::start(15), PostgresServer::start(18)] {
            for (n, point) in golden.offered("orders").enumerate() {
                let database = format!("restored_{n}");
                let target = harness::write_file(directory, "target", server.url(&database));
                let said = restore(copied, point, &format!("file:{}", target.display()));
                assert_eq!(said.code, 0, "{said}");
                assert_eq!(said.json()["differences"], json!([]), "{said}");
                for (question, answer) in &point.answers {
                    assert_eq!(&server.psql(&database, question), answer, "{question}");
                }
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_apps_are_served_by_the_real_pocketbase() {
    for golden in golden::all() {
        let directory = harness::temp_dir();
        let copied = golden.copy(&directory.path().join("copy"));
        for point in golden.offered("app").chain(golden.offered("shop")) {
            let to = directory.path().join(&point.run).join("pb_data");
            let said = restore(&copied, point, to.to_str().unwrap());
            assert_eq!(said.code, 0, "{said}");
            let served = PocketBase::start_on(&to, &golden.expected.pocketbase_password).await;
            assert_eq!(served_answers(&served).await, point.answers, "{}", point.run);
        }
    }
}
