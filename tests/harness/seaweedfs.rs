//! A real SeaweedFS for tests: an S3 server with versions and Object Lock, on free ports, with keys made for the run.
#![allow(dead_code, clippy::unwrap_used, clippy::print_stderr)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};

/// How long a server may take to begin.
const START_SECONDS: u64 = 60;

/// A running server; it is killed when this is dropped.
pub struct SeaweedFs {
    /// `http://127.0.0.1:PORT`
    pub endpoint: String,
    /// `https://127.0.0.1:PORT`, with a certificate that `tests/fixtures/tls/ca.pem` vouches for.
    pub tls_endpoint: String,
    /// May do everything.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// May read and list, and nothing else: key and secret.
    pub reader: (String, String),
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for SeaweedFs {
    fn drop(&mut self) {
        // SIGTERM takes it a quarter of a minute; there is nothing worth keeping.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("LIFEBOAT_TEST_WEED") {
        return path.into();
    }
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join(".services/bin/weed");
    if installed.is_file() {
        return installed;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|dir| dir.join("weed"))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("SeaweedFS is missing: run scripts/services install"))
}

fn random_hex(bytes: usize) -> String {
    let mut buffer = vec![0u8; bytes];
    getrandom::fill(&mut buffer).unwrap();
    buffer.iter().map(|b| format!("{b:02x}")).collect()
}

/// Free ports. Each server port comes with one for gRPC.
fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|l| l.local_addr().unwrap().port())
}

/// The status line and body of a plain GET, or nothing while nobody answers.
fn http_get(port: u16, path: &str) -> Option<String> {
    let address = ([127, 0, 0, 1], port).into();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

impl SeaweedFs {
    /// Starts a server and waits until it takes objects.
    pub fn start() -> Self {
        // Another process may take a port between the look and the start.
        for _ in 0..2 {
            if let Some(server) = Self::try_start() {
                return server;
            }
        }
        Self::try_start().expect("SeaweedFS does not start")
    }

    fn try_start() -> Option<Self> {
        let dir = tempfile::Builder::new()
            .prefix("lifeboat-weed-")
            .tempdir()
            .unwrap();
        let (access_key, secret_key) = (random_hex(10), random_hex(20));
        let reader = (random_hex(10), random_hex(20));
        let config = dir.path().join("s3.json");
        let identities = format!(
            r#"{{"identities":[{{"name":"test","credentials":[{{"accessKey":"{access_key}","secretKey":"{secret_key}"}}],"actions":["Admin","Read","Write","List","Tagging"]}},{{"name":"reader","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],"actions":["Read","List"]}}]}}"#,
            reader.0, reader.1
        );
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&config)
            .unwrap();
        file.write_all(identities.as_bytes()).unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let tls = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tls");
        let [
            master,
            master_grpc,
            volume,
            volume_grpc,
            filer,
            filer_grpc,
            s3,
            s3_grpc,
            https,
        ] = free_ports();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut command = Command::new(binary());
        command
            .arg("server")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"])
            .arg(format!("-dir={}", data.display()))
            .arg(format!("-master.port={master}"))
            .arg(format!("-master.port.grpc={master_grpc}"))
            .args(["-master.telemetry=false", "-master.volumeSizeLimitMB=256"])
            .arg(format!("-volume.port={volume}"))
            .arg(format!("-volume.port.grpc={volume_grpc}"))
            .args(["-volume.max=64", "-volume.preStopSeconds=0"])
            .arg(format!("-filer.port={filer}"))
            .arg(format!("-filer.port.grpc={filer_grpc}"))
            .arg(format!(
                "-filer.localSocket={}",
                dir.path().join("filer").display()
            ))
            .arg(format!("-s3.port={s3}"))
            .arg(format!("-s3.port.grpc={s3_grpc}"))
            .arg(format!("-s3.port.https={https}"))
            .args([
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.autoCreateBucket=false",
            ])
            .arg(format!("-s3.config={}", config.display()))
            .arg(format!("-s3.localSocket={}", dir.path().join("s3").display()))
            .arg(format!("-s3.cert.file={}", tls.join("server.pem").display()))
            .arg(format!("-s3.key.file={}", tls.join("server.key").display()))
            .env_remove("AWS_ACCESS_KEY_ID")
            .env_remove("AWS_SECRET_ACCESS_KEY")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let child = command.spawn().expect("SeaweedFS can not be run");
        let mut server = Self {
            endpoint: format!("http://127.0.0.1:{s3}"),
            tls_endpoint: format!("https://127.0.0.1:{https}"),
            access_key,
            secret_key,
            reader,
            child,
            dir,
        };
        let deadline = Instant::now() + Duration::from_secs(START_SECONDS);
        loop {
            if server.child.try_wait().unwrap().is_some() {
                eprintln!("SeaweedFS ended at once:\n{}", server.log_tail());
                return None;
            }
            let serves = http_get(s3, "/healthz").is_some_and(|a| a.starts_with("HTTP/1.1 200"));
            let stores = serves && http_get(master, "/dir/assign").is_some_and(|a| a.contains("\"fid\""));
            if stores {
                return Some(server);
            }
            assert!(
                Instant::now() < deadline,
                "SeaweedFS does not answer:\n{}",
                server.log_tail()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(30).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Makes a bucket; with Object Lock it keeps versions too.
    pub async fn create_bucket(&self, name: &str, object_lock: bool) {
        self.client()
            .create_bucket()
            .bucket(name)
            .object_lock_enabled_for_bucket(object_lock)
            .send()
            .await
            .unwrap();
    }

    /// A client of one's own, for what no store does: overwriting, looking behind.
    pub fn client(&self) -> aws_sdk_s3::Client {
        let credentials = Credentials::new(&self.access_key, &self.secret_key, None, None, "test");
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .credentials_provider(credentials)
            .build();
        aws_sdk_s3::Client::from_conf(config)
    }
}
