//! `backup demo`: the whole story on throwaway data. Each command it shows is the real program, run as it is shown.

mod parts;
mod servers;
mod stage;

use std::path::Path;

use super::Surroundings;
use super::args::DemoArgs;
use super::text::span;
use crate::error::{Error, Result};
use parts::Parts;
use servers::{PocketBase, Postgres};
use stage::Stage;

/// Every column of every order, a line each: what is compared.
const ORDERS: &str = "select id, customer, amount, placed_at from orders order by id";
const NOTES: u64 = 12;

/// Plays the story; exit 1 when what is restored is not what was there.
pub async fn demo(surroundings: &Surroundings, args: &DemoArgs) -> Result<u8> {
    if surroundings.printer.is_json() {
        return Err(Error::usage("the demo is a story, not a JSON document").hint("Leave --json out."));
    }
    let parts = parts::find(&surroundings.lookup)?;
    let begun = surroundings.world.clock.since_boot();
    let mut stage = Stage::new(surroundings, args.keep)?;
    // On an error both servers end before the directory goes: it is dropped last.
    play(&mut stage, &parts).await?;
    let seconds = surroundings
        .world
        .clock
        .since_boot()
        .saturating_sub(begun)
        .as_secs_f64();
    stage.say(&format!(
        "\nEverything was restored as it was, and compared. The demo took {}.",
        span(seconds)
    ))?;
    stage.clear()?;
    Ok(0)
}

async fn play(stage: &mut Stage<'_>, parts: &Parts) -> Result<()> {
    stage.chapter("A PostgreSQL with orders and a PocketBase with notes, on throwaway data")?;
    let postgres = Postgres::start(stage, &parts.postgres).await?;
    let home = stage.root().join("app");
    let app = PocketBase::start(stage, &parts.pocketbase, &home).await?;
    fill(stage, &postgres, &app).await?;
    stage.say(&format!(
        "PostgreSQL {}: 500 orders · PocketBase: {NOTES} notes, each with a file\nin {}",
        postgres.version,
        stage.root().display()
    ))?;

    policy(stage, parts, &postgres).await?;
    first_point(stage).await?;
    let before = accident(stage, &postgres, &app).await?;
    restore_orders(stage, &postgres, &before).await?;
    restore_app(stage, parts, &before).await?;
    upkeep(stage).await?;
    without_us(stage, &before).await
}

async fn fill(stage: &Stage<'_>, postgres: &Postgres, app: &PocketBase) -> Result<()> {
    postgres.sql(stage, "postgres", "create database orders").await?;
    let sql = "create table orders (id bigint generated always as identity primary key, customer text not null, \
               amount numeric(10,2) not null, placed_at timestamptz not null default clock_timestamp())";
    postgres.sql(stage, "orders", sql).await?;
    order(stage, postgres, 500).await?;
    for number in 1..=NOTES {
        let paper: Vec<u8> = (0..20_000).map(|byte: u64| (byte * number % 251) as u8).collect();
        app.add(stage, &format!("note {number}"), &paper).await?;
    }
    Ok(())
}

async fn order(stage: &Stage<'_>, postgres: &Postgres, number: u32) -> Result<()> {
    let sql = format!(
        "insert into orders (customer, amount) select 'customer ' || n, n * 1.25 from generate_series(1, {number}) n"
    );
    postgres.sql(stage, "orders", &sql).await.map(drop)
}

async fn policy(stage: &mut Stage<'_>, parts: &Parts, postgres: &Postgres) -> Result<()> {
    stage.chapter(
        "Two key pairs: one to recover with, one to drill with. The host keeps their recipients only",
    )?;
    let recovery = stage.backup(&["key", "generate", "recovery.key"]).await?;
    let drill = stage.backup(&["key", "generate", "drill.key"]).await?;
    stage.chapter("The policy: what, where to, when, how long. Secrets stay outside")?;
    let text = format!(
        r#"environment = "demo"
timezone = "Europe/Berlin"

[repository]
url = "file://{root}/repository"

[encryption]
recipients = ["{recovery}", "{drill}"]
identity = {{ file = "{root}/recovery.key" }}   # only where restores and drills run

[state]
dir = "{root}/state"

[source.orders]
kind = "postgres"
method = "logical"
url = {{ env = "DEMO_ORDERS_URL" }}
client_dir = "{client}"
schedule = "0 * * * *"
retention = "standard"

[source.app]
kind = "pocketbase"
path = "{root}/app/pb_data"
schedule = "0 * * * *"
retention = "standard"

[retention.standard]
hourly = 24
daily = 7
weekly = 5

[prune]
schedule = "30 6 * * *"
"#,
        root = stage.root().display(),
        client = parts.postgres.display(),
        recovery = recovery.trim(),
        drill = drill.trim(),
    );
    servers::write_private(&stage.root().join("policy.toml"), text.as_bytes())?;
    stage.other("cat", &["policy.toml"]).await?;
    stage.variable("DEMO_ORDERS_URL", postgres.url("orders", true)?);
    stage.variable("PGPASSWORD", postgres.password.clone());
    Ok(())
}

async fn first_point(stage: &Stage<'_>) -> Result<()> {
    stage.chapter("A repository, and the first recovery points")?;
    stage.backup(&["init"]).await?;
    stage.backup(&["check"]).await?;
    stage.backup(&["run"]).await?;
    stage.backup(&["list"]).await.map(drop)
}

/// What was there at an instant.
struct Before {
    instant: String,
    orders: String,
    notes: Vec<(serde_json::Value, Vec<u8>)>,
}

async fn accident(stage: &Stage<'_>, postgres: &Postgres, app: &PocketBase) -> Result<Before> {
    stage.chapter("Life goes on: twenty orders and a note more, and the next recovery points")?;
    order(stage, postgres, 20).await?;
    app.add(stage, "the note that matters", b"signed and sealed")
        .await?;
    stage.backup(&["run"]).await?;
    let sql = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')";
    let before = Before {
        instant: postgres.sql(stage, "postgres", sql).await?,
        orders: postgres.sql(stage, "orders", ORDERS).await?,
        notes: app.notes().await?,
    };
    stage.say(&format!(
        "At {} there are {} orders and {} notes.",
        before.instant,
        before.orders.lines().count(),
        before.notes.len()
    ))?;
    stage.chapter("The accident, which the run after it backs up faithfully")?;
    postgres
        .sql(
            stage,
            "orders",
            "delete from orders where id % 3 <> 0; update orders set amount = 0",
        )
        .await?;
    for (note, _) in &before.notes {
        app.delete(note["id"].as_str().unwrap_or_default()).await?;
    }
    let left = postgres
        .sql(stage, "orders", "select count(*), sum(amount) from orders")
        .await?;
    stage.say(&format!(
        "orders, and the sum of their amounts: {left}; notes: {}",
        app.notes().await?.len()
    ))?;
    stage.backup(&["run"]).await?;
    Ok(before)
}

async fn restore_orders(stage: &Stage<'_>, postgres: &Postgres, before: &Before) -> Result<()> {
    stage.chapter("Back to the instant before: the orders, into a new database")?;
    let target = postgres.url("orders_restored", false)?;
    stage
        .backup(&["restore", "orders", "--at", &before.instant, "--to", &target])
        .await?;
    let restored = postgres.sql(stage, "orders_restored", ORDERS).await?;
    compare(
        stage,
        "orders, every column",
        before.orders.lines().count(),
        restored.lines().count(),
        restored == before.orders,
    )
}

async fn restore_app(stage: &Stage<'_>, parts: &Parts, before: &Before) -> Result<()> {
    stage.chapter("The notes, into a directory that PocketBase serves")?;
    let target = "restored-app/pb_data";
    stage
        .backup(&["restore", "app", "--at", &before.instant, "--to", target])
        .await?;
    let app = PocketBase::start(stage, &parts.pocketbase, &stage.root().join("restored-app")).await?;
    let restored = app.notes().await?;
    compare(
        stage,
        "notes with their files, as PocketBase serves them",
        before.notes.len(),
        restored.len(),
        restored == before.notes,
    )
}

fn compare(stage: &Stage<'_>, what: &str, there: usize, back: usize, equal: bool) -> Result<()> {
    let verdict = if equal { "equal" } else { "DIFFERENT" };
    stage.say(&format!(
        "{what}: {there} were there, {back} are restored: {verdict}"
    ))?;
    if equal && there > 0 {
        return Ok(());
    }
    Err(Error::failed(format!(
        "{what}: what was restored is not what was there"
    )))
}

async fn upkeep(stage: &Stage<'_>) -> Result<()> {
    stage.chapter("Is every stored byte what was written? What would retention remove? Is all well?")?;
    stage.backup(&["verify", "--content"]).await?;
    stage.backup(&["prune", "--dry-run"]).await?;
    stage.backup(&["status"]).await.map(drop)
}

/// The same once more with the script that lies in the repository, byte for byte.
async fn without_us(stage: &Stage<'_>, before: &Before) -> Result<()> {
    let lookup = &stage.surroundings.lookup;
    let missing: Vec<&str> = ["python3", "age", "zstd", "diff"]
        .into_iter()
        .filter(|program| parts::in_path(lookup, program).is_none())
        .collect();
    if !missing.is_empty() {
        return stage.say(&format!(
            "\n(Restoring without Lifeboat is left out: this host has no {}.)",
            missing.join(", no ")
        ));
    }
    stage.chapter(
        "And without Lifeboat: python3, age and zstd, with the script that lies in the repository",
    )?;
    stage
        .backup(&["restore", "--all", "--at", &before.instant, "--to", "with"])
        .await?;
    for source in ["orders", "app"] {
        script(stage, source, &before.instant).await?;
    }
    stage.other("diff", &["-r", "with", "without"]).await?;
    let same = |path: &str| Path::new(&stage.root().join(path)).is_dir();
    if !same("with/orders") || !same("without/orders") {
        return Err(Error::failed("nothing was compared"));
    }
    stage.say("byte for byte the same")
}

/// How restore.py is called.
async fn script(stage: &Stage<'_>, source: &str, instant: &str) -> Result<()> {
    let target = format!("without/{source}");
    stage
        .other(
            "python3",
            &[
                "repository/restore.py",
                "repository",
                "restore",
                source,
                "--at",
                instant,
                "--identity",
                "recovery.key",
                "--to",
                &target,
            ],
        )
        .await
        .map(drop)
}
