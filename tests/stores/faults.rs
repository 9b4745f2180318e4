//! The S3 store before servers that fail, hang, cut and lie.

use super::*;

/// A server that answers every request with what `answer` makes of its number and head; an empty answer hangs.
async fn fake(
    answer: impl Fn(usize, &str) -> Vec<u8> + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let (counter, answer) = (Arc::clone(&requests), Arc::new(answer));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (counter, answer) = (Arc::clone(&counter), Arc::clone(&answer));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    match stream.read_u8().await {
                        Ok(byte) => head.push(byte),
                        Err(_) => return,
                    }
                }
                let head = String::from_utf8_lossy(&head).to_lowercase();
                let length = head
                    .lines()
                    .find_map(|l| l.strip_prefix("content-length: "))
                    .and_then(|l| l.trim().parse().ok())
                    .unwrap_or(0);
                let mut body = vec![0; length];
                if stream.read_exact(&mut body).await.is_err() {
                    return;
                }
                let bytes = answer(counter.fetch_add(1, Ordering::SeqCst), &head);
                if bytes.is_empty() {
                    std::future::pending::<()>().await;
                }
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (address, requests)
}

fn reply(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n{body}")
        .into_bytes()
}

fn error_body(code: &str) -> String {
    format!("<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>")
}

async fn fake_store(address: SocketAddr) -> SharedStore {
    connect(S3Config {
        endpoint: Some(format!("http://{address}")),
        credentials: Some((secret("id"), secret("secret"))),
        timeouts: S3Timeouts {
            connect: Duration::from_secs(5),
            read: Duration::from_millis(300),
            operation: Duration::from_millis(1500),
        },
        ..S3Config::new("bucket".to_owned(), String::new())
    })
    .await
}

#[tokio::test]
async fn a_store_that_asks_to_slow_down_is_asked_once() {
    let (address, requests) = fake(|_, _| reply("503 Slow Down", "", &error_body("SlowDown"))).await;
    let store = fake_store(address).await;
    for fault in all_faults(&store).await {
        assert_eq!(fault, Ok(Fault::Throttled));
    }
    // The SDK retries nothing.
    assert_eq!(requests.load(Ordering::SeqCst), 6);
}

#[tokio::test]
async fn answers_that_are_not_s3_prove_nothing() {
    let (address, _) = fake(|_, _| reply("404 Not Found", "", "<html>no such page</html>")).await;
    let store = fake_store(address).await;
    let got = store.get(&key("k"), None, View::Current).await.unwrap_err();
    assert_ne!(got.fault, Fault::NotFound, "{got:?}");
    let head = store.head(&key("k"), View::Current).await.unwrap_err();
    assert_eq!(head.fault, Fault::NoBucket);
    let (address, _) = fake(|_, _| reply("200 OK", "", "<html>welcome</html>")).await;
    let store = fake_store(address).await;
    assert!(store.list("p", None, View::Current).await.is_err());
}

#[tokio::test]
async fn silence_and_cut_bodies_are_told_in_time() {
    let (address, _) = fake(|_, _| Vec::new()).await;
    let store = fake_store(address).await;
    let error = store.get(&key("k"), None, View::Current).await.unwrap_err();
    assert_eq!(error.fault, Fault::Unavailable);

    let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nonly this";
    let (address, _) = fake(move |_, _| cut.to_vec()).await;
    let store = fake_store(address).await;
    let error = store.get(&key("k"), None, View::Current).await.unwrap_err();
    assert_eq!(error.fault, Fault::Unavailable, "{error:?}");

    // Less than the range, or all of it: both are not what was asked for.
    for body in ["123", "0123456789"] {
        let (address, _) = fake(move |_, _| reply("206 Partial Content", "", body)).await;
        let store = fake_store(address).await;
        let error = store.get(&key("k"), Some(2..7), View::Current).await.unwrap_err();
        assert_eq!(error.fault, Fault::Damaged, "{error:?}");
    }

    // Nobody there at all.
    let free = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let store = fake_store(free).await;
    for fault in all_faults(&store).await {
        assert_eq!(fault, Ok(Fault::Unavailable));
    }
}

#[tokio::test]
async fn a_body_that_stops_flowing_ends_with_the_call() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let begun = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this";
        stream.write_all(begun).await.unwrap();
        std::future::pending::<()>().await;
    });
    let store = fake_store(address).await;
    let error = store.get(&key("k"), None, View::Current).await.unwrap_err();
    assert_eq!(error.fault, Fault::Unavailable, "{error:?}");
    server.abort();
}

#[tokio::test]
async fn a_store_without_conditional_puts_is_remembered() {
    let (address, requests) = fake(|_, head| {
        if head.contains("if-none-match") {
            reply("501 Not Implemented", "", &error_body("NotImplemented"))
        } else {
            reply("200 OK", "", "")
        }
    })
    .await;
    let store = fake_store(address).await;
    for _ in 0..2 {
        store
            .put(&key("k"), Bytes::from_static(b"x"), PutOptions::default())
            .await
            .unwrap();
    }
    assert_eq!(requests.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_full_store_says_so() {
    let (address, _) =
        fake(|_, _| reply("507 Insufficient Storage", "", &error_body("XMinioStorageFull"))).await;
    let store = fake_store(address).await;
    let key = key("k");
    let put = store.put(&key, Bytes::from_static(b"x"), PutOptions::default());
    assert_eq!(put.await.unwrap_err().fault, Fault::Full);
}

#[tokio::test]
async fn the_clock_is_the_date_header() {
    let date = "Date: Tue, 02 Jan 2024 03:04:05 GMT\r\n";
    let (address, _) = fake(move |_, _| reply("403 Forbidden", date, "")).await;
    let now = fake_store(address).await.now().await.unwrap();
    assert_eq!(
        now,
        "2024-01-02T03:04:05Z".parse::<chrono::DateTime<Utc>>().unwrap()
    );
    let (address, _) = fake(move |_, _| reply("502 Bad Gateway", date, "")).await;
    let error = fake_store(address).await.now().await.unwrap_err();
    assert_eq!(error.fault, Fault::Unavailable);
    let (address, _) = fake(|_, _| reply("200 OK", "", "")).await;
    let error = fake_store(address).await.now().await.unwrap_err();
    assert_eq!(error.fault, Fault::Unsupported);
}

#[tokio::test]
async fn retries_get_through_a_store_that_fails_now_and_then() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let (address, _) = fake(|n, _| match n {
        0 => reply("503 Slow Down", "", &error_body("SlowDown")),
        1 => reply("500 Internal Server Error", "", &error_body("InternalError")),
        _ => reply("200 OK", "", "body"),
    })
    .await;
    let observe = Observe::new(fake_store(address).await);
    let counters = observe.counters();
    let store = Retry::new(observe, &world());
    let got = store.get(&key("k"), None, View::Current).await.unwrap();
    assert_eq!(got, "body");
    let count = counters.of(Operation::Get);
    assert_eq!((count.calls, count.failures, count.bytes), (3, 2, 4));
}

#[tokio::test]
async fn an_endpoint_with_a_password_is_refused() {
    for endpoint in [
        "https://user:hush@host",
        "ftp://host",
        "host:9000",
        "https://host/?key=hush",
    ] {
        let config = S3Config {
            endpoint: Some(endpoint.to_owned()),
            credentials: Some((secret("id"), secret("secret"))),
            ..S3Config::new("bucket".to_owned(), String::new())
        };
        let error = S3Store::connect(config).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(!format!("{error:?}").contains("hush"));
    }
}
