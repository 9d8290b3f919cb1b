//! Which file a verb is about, and which crimux: where that of the running one is not the usual one.

use testkit::eventually;
use testkit::runtime::SimRuntime;

use crate::cli::{crimux, on, told};
use crate::support::{Crimux, SOON, config};

async fn two() -> (SimRuntime, SimRuntime, Crimux) {
    let a = SimRuntime::builder("a").sandboxes(2, 1).start().await;
    let b = SimRuntime::builder("b").sandboxes(2, 1).start().await;
    let crimux = Crimux::start(&[("a", &a), ("b", &b)]).await;
    (a, b, crimux)
}

fn path(running: &Crimux, name: &str) -> String {
    running.dir.path().join(name).display().to_string()
}

#[tokio::test]
async fn a_dry_run_is_about_the_file_of_the_crimux_that_the_socket_names() {
    let (a, b, running) = two().await;
    let own = path(&running, "crimux.yaml");
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "");
    let (code, out, _) = on(&running, &["reload", "--dry-run"], "").await;
    assert_eq!((code, out), (0, format!("{own}: would change nothing\n")));
    // A reload of this would be refused, so that the watcher of the file changes nothing.
    let alone = config(&running.dir, &[("a", &a)], "").replace("/state\n", "/elsewhere\n");
    running.rewrite(&alone);
    let (code, out, _) = on(&running, &["reload", "--dry-run"], "").await;
    assert_eq!(code, 1, "{out}");
    assert!(out.contains("2 pods") && out.contains(&format!("{own}: would not be applied")), "{out}");
    running.rewrite(&(yaml.clone() + "drain_timeout: never\n"));
    let (code, _, error) = on(&running, &["reload", "--dry-run"], "").await;
    assert!(
        code == 64 && error.starts_with(&format!("{own}:")) && error.contains("drain_timeout"),
        "{error}"
    );
    // Another file is asked about by its name.
    let other = path(&running, "other.yaml");
    std::fs::write(
        &other,
        yaml.replace("  b: { endpoint", "  c: { endpoint").replace("backend: b", "backend: c"),
    )
    .unwrap();
    let (code, out, error) = on(&running, &["reload", "--dry-run", "--config", &other], "").await;
    assert_eq!(code, 0, "{error}");
    assert!(
        out.contains("backend b → c: renamed") && out.contains(&format!("{other}: would be applied")),
        "{out}"
    );
    std::fs::write(&other, "default_backend: [").unwrap();
    let (code, _, error) = on(&running, &["reload", "--dry-run", "--config", &other], "").await;
    assert!(code == 64 && error.starts_with(&format!("{other}:1:18: ")), "{error}");
}

#[tokio::test]
async fn a_reload_says_that_the_file_named_is_not_the_one_that_is_read() {
    let (_a, _b, running) = two().await;
    let (own, copy) = (path(&running, "crimux.yaml"), path(&running, "copy.yaml"));
    std::fs::copy(&own, &copy).unwrap();
    let (code, _, error) = told(&crimux(&["reload", "--config", &copy], "").await);
    assert!(code == 0 && error.contains(&format!("reads {own}, not {copy}")), "{error}");
    let (code, _, error) = told(&crimux(&["reload", "--config", &own], "").await);
    assert_eq!((code, error.as_str()), (0, ""));
}

#[tokio::test]
async fn a_moved_admin_socket_is_found_and_compared_until_the_restart() {
    let (a, b, mut running) = two().await;
    let own = path(&running, "crimux.yaml");
    let moved = config(&running.dir, &[("a", &a), ("b", &b)], "").replace("/admin.sock", "/moved.sock");
    running.rewrite(&moved);
    for file in [own.clone(), path(&running, "new.yaml")] {
        std::fs::write(&file, &moved).unwrap();
        let (code, found, _) = told(&crimux(&["check", &file], "").await);
        assert!(code == 0 && found.contains("admin.socket: differs from the running crimux"), "{found}");
        assert_eq!(
            found.contains(&format!("note: running crimux: it reads {own}, not")),
            file != own,
            "{found}"
        );
    }
    let (code, table, error) = told(&crimux(&["status", "--config", &own], "").await);
    assert!(
        code == 0 && error.is_empty() && table.contains(&format!("configuration {own}\n")),
        "{table}{error}"
    );
    // So it is for a file with problems.
    std::fs::write(path(&running, "new.yaml"), moved.clone() + "listen: [\n").unwrap();
    let (code, table, error) = told(&crimux(&["status", "--config", &path(&running, "new.yaml")], "").await);
    assert!(
        code == 0 && table.contains("a (default)") && error.contains("\"[\" is not closed"),
        "{table}{error}"
    );
    running.restart().await;
    eventually(SOON, async || told(&crimux(&["status", "--check", "--config", &own], "").await).0 == 0).await;
}

#[tokio::test]
async fn a_check_that_names_a_socket_is_about_the_file_of_that_crimux() {
    let (_a, _b, running) = two().await;
    let own = path(&running, "crimux.yaml");
    let (code, found, _) = on(&running, &["check"], "").await;
    assert_eq!((code, found), (0, format!("{own}: ok\n")));
    let other = path(&running, "other.yaml");
    std::fs::write(&other, std::fs::read_to_string(&own).unwrap().replace("/admin.sock", "/nowhere.sock"))
        .unwrap();
    let (code, found, _) = on(&running, &["check", &other], "").await;
    assert!(code == 0 && found.contains("admin.socket: differs from the running crimux"), "{found}");
    let nowhere = path(&running, "nowhere.sock");
    let (code, _, error) = told(&crimux(&["check", "--socket", &nowhere, &other], "").await);
    assert!(code == 1 && error.contains("there is no admin socket at"), "{error}");
    let (_, view, _) = on(&running, &["config", "view"], "").await;
    assert!(view.starts_with(&format!("# read from {own}\n")), "{view}");
}

#[tokio::test]
async fn a_check_warns_of_handlers_that_only_drained_backends_serve() {
    let (_a, _b, running) = two().await;
    assert_eq!(on(&running, &["backend", "drain", "b", "--force"], "").await.0, 0);
    let (code, found, _) = on(&running, &["check"], "").await;
    let line = found.lines().find(|line| line.contains("handlers.b: ")).unwrap_or_default();
    assert!(code == 0 && line.contains("drained by the operator: b"), "{found}");
    assert!(line.contains(": warning: handlers.b: ") && !found.contains("handlers.a: "), "{found}");
    let (_, json, _) = on(&running, &["check", "-o", "json"], "").await;
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let finding = &report["findings"][0];
    assert_eq!((&finding["about"], &finding["grade"]), (&"handlers.b".into(), &"warning".into()), "{report}");
    let yaml = std::fs::read_to_string(path(&running, "crimux.yaml")).unwrap();
    let line = yaml.lines().position(|line| line.starts_with("  b: { backend")).unwrap() + 1;
    assert_eq!((&finding["line"], &finding["column"]), (&line.into(), &3.into()), "{report}");
}

#[tokio::test]
async fn doubtful_values_are_in_the_log_of_a_start_and_of_a_reload() {
    let (a, b, mut running) = two().await;
    let yaml = config(&running.dir, &[("a", &a), ("b", &b)], "listen_mode: \"0640\"\n");
    let warned = |log: &str| log.matches("key=\"listen_mode\"").count();
    running.rewrite(&yaml);
    eventually(SOON, async || warned(&running.log()) == 1).await;
    running.restart().await;
    eventually(SOON, async || warned(&running.log()) == 2).await;
}
