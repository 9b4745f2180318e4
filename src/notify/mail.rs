//! Notices by e-mail: SMTP with TLS.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use lettre::message::header::ContentType;
use lettre::message::{Mailbox, header};
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor};
use url::{Host, Url};

use super::Notice;
use crate::error::{Error, Result};
use crate::secret::SecretText;

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
    let failed = |e| Error::failed("the SMTP server did not take it").because(e);
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(server.as_str())
        .map_err(|_| Error::usage("the SMTP URL can not be read"))?
        .timeout(Some(PATIENCE));
    if let Some(path) = ca_file
        && (server.scheme() == "smtps" || server.query().is_some())
    {
        let certificate =
            Certificate::from_pem(&super::trusted(path)?).map_err(|e| super::unusable(path, e))?;
        let parameters = TlsParameters::builder(server.host_str().unwrap_or_default().to_owned())
            .add_root_certificate(certificate)
            .build_rustls()
            .map_err(|e| super::unusable(path, e))?;
        builder = builder.tls(match server.scheme() {
            "smtps" => Tls::Wrapper(parameters),
            _ => Tls::Required(parameters),
        });
    }
    let transport = builder.build();
    match tokio::time::timeout(PATIENCE, transport.send(message)).await {
        Ok(Ok(answer)) if answer.is_positive() => Ok(()),
        Ok(Ok(answer)) => Err(Error::failed(format!(
            "the SMTP server answered {}",
            answer.code()
        ))),
        Ok(Err(e)) => Err(failed(e)),
        Err(_) => Err(Error::failed("the SMTP server does not answer")),
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
