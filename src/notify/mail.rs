//! Notices by e-mail: SMTP with TLS.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, header};
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{
    AsyncSmtpConnection, AsyncTokioStream, Certificate, Tls, TlsParameters,
};
use lettre::transport::smtp::extension::ClientId;
use lettre::transport::smtp::response::Response;
use lettre::transport::smtp::{SMTP_PORT, SUBMISSION_PORT};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use url::{Host, Url};

use super::Notice;
use crate::error::{Error, Result};
use crate::secret::SecretText;

/// All that a server may say over a notice, bytes.
const SAID_MAX_BYTES: usize = 256 << 10;
/// A server that takes longer over a notice has not taken it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Whether a server's URL can be used.
///
/// # Errors
/// It can not; the message has nothing of it.
pub fn check(url: &SecretText) -> Result<()> {
    server(url).map(drop)
}

/// The server's URL with what makes the connection safe: TLS from the start (`smtps`), else before anything is said
/// (`smtp`, STARTTLS). Only a server on this host is spoken to without.
fn server(url: &SecretText) -> Result<Url> {
    let bad = |why: &str| {
        Error::usage(format!("the SMTP URL {why}")).hint(
            "It looks like smtps://USER:PASSWORD@mail.example.net, or smtp:// for STARTTLS on port 587.",
        )
    };
    let mut url = Url::parse(url.expose().trim()).map_err(|_| bad("can not be read"))?;
    let here = match url.host() {
        None => return Err(bad("has no host")),
        // The address of a scheme that the standard does not know is not read as one (URL, section 3.5).
        Some(Host::Domain(name)) => {
            name == "localhost" || name.parse::<Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
        }
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
    };
    let open = url.username().is_empty() && url.password().is_none() && here;
    match url.scheme() {
        "smtps" => {}
        "smtp" if open && url.query().is_none() => {}
        "smtp" => url.set_query(Some("tls=required")),
        _ => return Err(bad("begins with neither smtps:// nor smtp://")),
    }
    Ok(url)
}

fn message(to: &Mailbox, from: &Mailbox, notice: &Notice) -> Result<Message> {
    // The same notice sent twice, since its first reply was lost, is the same message.
    let id = blake3::hash(format!("{notice:?}").as_bytes()).to_hex();
    Message::builder()
        .message_id(Some(format!("<{}@{}>", &id[..32], from.email.domain())))
        .from(from.clone())
        .to(to.clone())
        .subject(notice.subject())
        // RFC 3834, section 5: nobody's absence answers it.
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        .body(notice.text() + "\n")
        .map_err(|e| Error::failed("a notice can not be written as a message").because(e))
}

#[derive(Clone)]
struct AutoSubmitted;

impl header::Header for AutoSubmitted {
    fn name() -> header::HeaderName {
        header::HeaderName::new_from_ascii_str("Auto-Submitted")
    }
    fn parse(_: &str) -> std::result::Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }
    fn display(&self) -> header::HeaderValue {
        header::HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

/// Sends a notice; done when the server says that it has taken it.
///
/// # Errors
/// It can not be reached, is not who it says, hangs, or does not take it. The message has no URL: it has the password.
pub async fn send(
    url: &SecretText,
    to: &Mailbox,
    from: &Mailbox,
    notice: &Notice,
    ca_file: Option<&Path>,
) -> Result<()> {
    let server = server(url)?;
    let message = message(to, from, notice)?;
    let tls = match ca_file {
        Some(path) if server.scheme() == "smtps" || server.query().is_some() => {
            Some(trusting(&server, path)?)
        }
        _ => None,
    };
    let sent = async {
        match server.scheme() {
            "smtps" => wrapped(&server, tls, message).await,
            _ => greeted(&server, tls, message).await,
        }
    };
    match tokio::time::timeout(PATIENCE, sent).await {
        Ok(Ok(answer)) if answer.is_positive() => Ok(()),
        Ok(Ok(answer)) => Err(Error::failed(format!(
            "the SMTP server answered {}",
            answer.code()
        ))),
        Ok(Err(e)) => Err(e),
        Err(_) => Err(Error::failed("the SMTP server does not answer")),
    }
}

fn failed(e: lettre::transport::smtp::Error) -> Error {
    Error::failed("the SMTP server did not take it").because(e)
}

/// TLS with certificates of the operator's own.
fn trusting(server: &Url, path: &Path) -> Result<TlsParameters> {
    let certificate = Certificate::from_pem(&super::trusted(path)?).map_err(|e| super::unusable(path, e))?;
    TlsParameters::builder(server.host_str().unwrap_or_default().to_owned())
        .add_root_certificate(certificate)
        .build_rustls()
        .map_err(|e| super::unusable(path, e))
}

/// TLS from the start: who answers has shown who it is before it says anything.
async fn wrapped(server: &Url, tls: Option<TlsParameters>, message: Message) -> Result<Response> {
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(server.as_str())
        .map_err(|_| Error::usage("the SMTP URL can not be read"))?
        .timeout(Some(PATIENCE));
    if let Some(parameters) = tls {
        builder = builder.tls(Tls::Wrapper(parameters));
    }
    builder.build().send(message).await.map_err(failed)
}

/// STARTTLS, or no TLS at all on this host: anybody on the way can say anything first, so that much is taken and no more.
async fn greeted(server: &Url, tls: Option<TlsParameters>, message: Message) -> Result<Response> {
    let host = server.host_str().unwrap_or_default();
    let secure = server.query().is_some();
    let port = server
        .port()
        .unwrap_or(if secure { SUBMISSION_PORT } else { SMTP_PORT });
    let reached = |e| Error::failed("the SMTP server can not be reached").because(e);
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((bare, port)).await.map_err(reached)?;
    let bounded = Bounded {
        stream,
        left: SAID_MAX_BYTES,
    };
    let hello = ClientId::default();
    let mut connection = AsyncSmtpConnection::connect_with_transport(Box::new(bounded), &hello)
        .await
        .map_err(failed)?;
    if secure {
        let tls = match tls {
            Some(tls) => tls,
            None => TlsParameters::new_rustls(host.to_owned()).map_err(failed)?,
        };
        connection.starttls(tls, &hello).await.map_err(failed)?;
    }
    if !server.username().is_empty() {
        let plain = |text: &str| {
            percent_decode_str(text)
                .decode_utf8()
                .map(std::borrow::Cow::into_owned)
                .map_err(|_| Error::usage("the SMTP URL can not be read"))
        };
        let password = plain(server.password().unwrap_or_default())?;
        let credentials = Credentials::new(plain(server.username())?, password);
        let mechanisms = [Mechanism::Plain, Mechanism::Login];
        connection.auth(&mechanisms, &credentials).await.map_err(failed)?;
    }
    let sent = connection.send(message.envelope(), &message.formatted()).await;
    connection.abort().await;
    sent.map_err(failed)
}

/// A connection whose other end may say so much and no more.
#[derive(Debug)]
struct Bounded {
    stream: TcpStream,
    left: usize,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let said = buffer.filled().len() - before;
        Poll::Ready(match self.left.checked_sub(said) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(io::Error::other("it says more than an SMTP server has to")),
        })
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncTokioStream for Bounded {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.stream.peer_addr()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::notice;
    use super::*;
    use crate::policy::Event;

    fn url(text: &str) -> Result<Url> {
        server(&SecretText::new(text.to_owned()))
    }

    #[test]
    fn nothing_is_said_without_tls_but_to_this_host() {
        let safe = "smtps://a:b@mail.example.net";
        assert_eq!(url(safe).unwrap().as_str(), safe);
        for open in [
            "smtp://mail.example.net:587",
            "smtp://a:b@127.0.0.1",
            "smtp://mail.example.net?tls=opportunistic",
        ] {
            assert_eq!(url(open).unwrap().query(), Some("tls=required"), "{open}");
        }
        for here in ["smtp://localhost:25", "smtp://127.0.0.1:2525", "smtp://[::1]"] {
            assert_eq!(url(here).unwrap().query(), None, "{here}");
        }
        for bad in [
            "mail.example.net",
            "https://sesame@mail.example.net",
            "smtps:///x",
        ] {
            let error = url(bad).unwrap_err();
            assert!(
                error.hint_text().is_some() && !error.chain().contains("sesame"),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_message_says_what_the_others_say() {
        let (to, from): (Mailbox, Mailbox) = (
            "Operations <ops@example.net>".parse().unwrap(),
            "lifeboat@example.net".parse().unwrap(),
        );
        let told = notice(Event::Failure);
        let text = String::from_utf8(message(&to, &from, &told).unwrap().formatted()).unwrap();
        assert!(text.contains("To: Operations <ops@example.net>\r\n"), "{text}");
        assert!(text.contains("Auto-Submitted: auto-generated\r\n"), "{text}");
        assert!(
            text.contains("Subject: Lifeboat (production): run orders failed 3 times in a row\r\n"),
            "{text}"
        );
        assert!(text.contains("cause: the server is \"down\" @everyone"), "{text}");
        // A name that a hostile source brought can not add a header.
        let mut hostile = told;
        hostile.task = "run x\r\nBcc: all@example.net".into();
        let text = String::from_utf8(message(&to, &from, &hostile).unwrap().formatted()).unwrap();
        let head = text.split("\r\n\r\n").next().unwrap();
        assert!(!head.lines().any(|l| l.starts_with("Bcc")), "{text}");
    }
}
