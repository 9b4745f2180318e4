//! E-mail, to a real SMTP server over TLS that takes, refuses, hangs up and lies.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::harness;
use crate::notices::{all_told, hours, secret, tell};
use crate::world::Port;

/// How the server is today.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Takes,
    /// Takes the message and then says that it will not.
    Refuses,
    /// Goes away when the message is there.
    HangsUp,
    /// Does not know the password.
    Stranger,
    /// Says that it is fine before it has heard the message, then that it is not.
    Lies,
}

struct Server {
    port: u16,
    mood: Arc<Mutex<Mood>>,
    taken: Arc<Mutex<Vec<String>>>,
    heard: Arc<Mutex<String>>,
}

/// What a client may say at once.
struct Talk<S> {
    stream: BufReader<S>,
    heard: Arc<Mutex<String>>,
}

impl<S: Read + Write> Talk<S> {
    fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).unwrap_or(0);
        *self.heard.lock().unwrap() += &line;
        (read > 0).then_some(line)
    }
    fn say(&mut self, text: &str) -> Option<()> {
        self.stream.get_mut().write_all(text.as_bytes()).ok()?;
        self.stream.get_mut().flush().ok()
    }
}

/// One connection (RFC 5321). `None`: somebody went away.
fn serve<S: Read + Write>(talk: &mut Talk<S>, mood: Mood, taken: &Mutex<Vec<String>>) -> Option<()> {
    talk.say("220 mail.example.net ESMTP\r\n")?;
    loop {
        let line = talk.line()?;
        match line.split_whitespace().next()?.to_ascii_uppercase().as_str() {
            "EHLO" => talk.say("250-mail.example.net\r\n250 AUTH PLAIN LOGIN\r\n")?,
            "AUTH" if mood == Mood::Stranger => talk.say("535 5.7.8 who are you\r\n")?,
            // RFC 4616: nobody, name, password.
            "AUTH" if line.contains("AGxpZmVib2F0AG9wZW4gc2VzYW1l") => talk.say("235 2.7.0 welcome\r\n")?,
            "AUTH" => talk.say("535 5.7.8 wrong\r\n")?,
            "MAIL" | "RCPT" | "RSET" | "NOOP" => talk.say("250 fine\r\n")?,
            "DATA" => {
                talk.say("354 go on\r\n")?;
                let mut message = String::new();
                loop {
                    let line = talk.line()?;
                    if line == ".\r\n" {
                        break;
                    }
                    message += &line;
                }
                match mood {
                    Mood::HangsUp => return None,
                    Mood::Refuses => talk.say("554 5.7.1 not today\r\n")?,
                    Mood::Lies => talk.say("250-taken\r\n554 or not\r\n")?,
                    _ => {
                        taken.lock().unwrap().push(message);
                        talk.say("250 2.0.0 taken\r\n")?;
                    }
                }
            }
            "QUIT" => {
                talk.say("221 bye\r\n")?;
                return None;
            }
            _ => talk.say("502 what?\r\n")?,
        }
    }
}

impl Server {
    /// With TLS from the start, or none at all.
    fn start(tls: bool) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let server = Self {
            port: listener.local_addr().unwrap().port(),
            mood: Arc::new(Mutex::new(Mood::Takes)),
            taken: Arc::default(),
            heard: Arc::default(),
        };
        let fixtures = harness::project().join("tests/fixtures/tls");
        let chain: Vec<_> = CertificateDer::pem_file_iter(fixtures.join("server.pem"))
            .unwrap()
            .map(Result::unwrap)
            .collect();
        let key = PrivateKeyDer::from_pem_file(fixtures.join("server.key")).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let config = Arc::new(config);
        let (mood, taken, heard) = (server.mood.clone(), server.taken.clone(), server.heard.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream: TcpStream = stream.unwrap();
                let (mood, taken, heard) = (*mood.lock().unwrap(), taken.clone(), heard.clone());
                if tls {
                    let session = rustls::ServerConnection::new(config.clone()).unwrap();
                    let stream = BufReader::new(rustls::StreamOwned::new(session, stream));
                    serve(&mut Talk { stream, heard }, mood, &taken);
                } else {
                    let stream = BufReader::new(stream);
                    serve(&mut Talk { stream, heard }, mood, &taken);
                }
            }
        });
        server
    }
    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
    fn taken(&self) -> Vec<String> {
        self.taken.lock().unwrap().clone()
    }
}

/// A daemon whose repository is away, and that writes to a server.
async fn in_trouble(seed: u64, keys: &str, url: &str) -> Port {
    let mut port = Port::new(seed, "0 * * * *", "");
    let keys = format!(
        "email = \"Operations <ops@example.net>\"\nfrom = \"lifeboat@example.net\"\n{keys}\nsmtp = {}",
        secret(&port, "smtp", url)
    );
    tell(&port, &keys);
    port.start();
    port.rest().await;
    hours(&mut port, 1).await;
    std::fs::rename(port.site.path("repository"), port.site.path("away")).unwrap();
    hours(&mut port, 1).await;
    port
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_out_over_tls_and_is_kept_until_it_is_taken() {
    let server = Server::start(true);
    server.be(Mood::Refuses);
    let ca = harness::project().join("tests/fixtures/tls/ca.pem");
    let url = format!("smtps://lifeboat:open%20sesame@localhost:{}", server.port);
    let mut port = in_trouble(241, &format!("ca_file = \"{}\"", ca.display()), &url).await;
    for mood in [Mood::Refuses, Mood::HangsUp, Mood::Stranger, Mood::Lies] {
        server.be(mood);
        hours(&mut port, 1).await;
        port.until(|shown| shown.owed == 1).await;
        assert!(server.taken().is_empty(), "{mood:?}");
    }
    server.be(Mood::Takes);
    hours(&mut port, 1).await;
    port.told_in_time().await;
    let taken = server.taken();
    assert_eq!(taken.len(), 1, "once");
    assert!(
        taken[0].contains("To: Operations <ops@example.net>\r\n"),
        "{taken:?}"
    );
    assert!(taken[0].contains("From: lifeboat@example.net\r\n"), "{taken:?}");
    assert!(
        taken[0].contains("Subject: Lifeboat (test): run app failed\r\n"),
        "{taken:?}"
    );
    assert!(
        taken[0].replace("=\r\n", "").contains("no such directory"),
        "{taken:?}"
    );
    std::fs::rename(port.site.path("away"), port.site.path("repository")).unwrap();
    hours(&mut port, 1).await;
    port.until(all_told).await;
    assert!(
        server.taken()[1].contains("is well again"),
        "{:?}",
        server.taken()
    );
    port.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_to_a_server_that_is_not_who_it_says() {
    // Its certificate is not trusted here; and one without TLS, which was asked for.
    let (stranger, open) = (Server::start(true), Server::start(false));
    for (seed, server, scheme) in [(242, &stranger, "smtps"), (243, &open, "smtp")] {
        let url = format!("{scheme}://lifeboat:open%20sesame@localhost:{}", server.port);
        let mut port = in_trouble(seed, "", &url).await;
        port.until(|shown| shown.owed == 1).await;
        hours(&mut port, 2).await;
        port.until(|shown| shown.owed == 1).await;
        assert!(server.taken().is_empty());
        let heard = server.heard.lock().unwrap().clone();
        assert!(!heard.contains("AUTH") && !heard.contains("MAIL"), "{heard}");
        port.stop().await;
    }
    // A server on this host, without a password, is spoken to as it is.
    let here = Server::start(false);
    let mut port = in_trouble(244, "", &format!("smtp://localhost:{}", here.port)).await;
    port.until(all_told).await;
    assert_eq!(here.taken().len(), 1);
    port.stop().await;
}

#[test]
fn a_server_that_never_stops_talking_fills_no_memory() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("smtp://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let poured = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (line, mut sum) = ([b'2'; 1 << 16], 0u64);
        // A greeting without an end, until somebody has heard enough.
        while stream.write_all(&line).is_ok() {
            sum += line.len() as u64;
        }
        sum
    });
    let port = Port::new(245, "0 * * * *", "");
    tell(
        &port,
        &format!(
            "email = \"ops@example.net\"\nsmtp = {}",
            secret(&port, "smtp", &url)
        ),
    );
    let said = harness::run(&mut port.site.backup(&["check", "--notify"]));
    assert_eq!(said.code, 1, "{said}");
    assert!(
        said.stdout.contains("it says more than an SMTP server has to"),
        "{said}"
    );
    let poured = poured.join().unwrap();
    // What the system holds on the way, beside what was taken.
    assert!(poured < 64 << 20, "{poured} bytes were taken");
}
