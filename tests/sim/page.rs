//! The status page and the metrics tell the same story as `crimux status`: who drains, who works, what was
//! reloaded.

use nix::sys::signal::Signal;
use testkit::client::sandbox_config;
use testkit::runtime::SimRuntime;
use testkit::{cri, eventually};

use crate::cli::on;
use crate::support::{Crimux, SOON, config};

/// The row of the page's first table that is about this backend.
fn row<'a>(page: &'a str, backend: &str) -> &'a str {
    let start = page.find(&format!("<th scope=\"row\">{backend}")).expect("the backend has a row");
    page[start..].split("</tr>").next().unwrap()
}

#[tokio::test]
async fn drains_calls_placements_and_reloads_are_on_the_page_and_in_the_metrics() {
    let a = SimRuntime::builder("containerd").handlers(["a"]).sandboxes(2, 2).start().await;
    let b = SimRuntime::builder("cri-o").handlers(["b"]).sandboxes(2, 2).start().await;
    let dir = tempfile::tempdir().unwrap();
    let yaml = config(&dir, &[("a", &a), ("b", &b)], "").replace("http: off", "http: 127.0.0.1:0");
    let crimux = Crimux::start_in(dir, &yaml);
    crimux.wait_ready().await;
    let (_, page) = crimux.http("GET", "/").await;
    for column in ["State", "Since", "Calls", "Sandboxes", "Containers", "List age"] {
        assert!(page.contains(&format!(">{column}</th>")), "{column}: {page}");
    }
    assert!(page.contains("No sandbox was asked for") && page.contains("not reloaded since"), "{page}");
    assert!(page.contains("http-equiv=\"refresh\" content=\"5\""), "{page}");

    assert_eq!(on(&crimux, &["backend", "drain", "b", "--force"], "").await.0, 0);
    // The page is made once a second at most.
    eventually(SOON, async || crimux.http("GET", "/").await.1.contains("draining: b")).await;
    let (_, page) = crimux.http("GET", "/").await;
    assert!(row(&page, "b").contains("draining") && !row(&page, "a").contains("draining"), "{page}");
    for (series, value) in [
        ("crimux_backend_draining{backend=\"b\"}", 1.0),
        ("crimux_backend_draining{backend=\"a\"}", 0.0),
        ("crimux_backend_state{backend=\"b\",state=\"draining\"}", 1.0),
        ("crimux_backend_up{backend=\"b\"}", 1.0),
    ] {
        assert_eq!(crimux.metric(series).await, Some(value), "{series}");
    }
    assert_eq!(on(&crimux, &["backend", "undrain", "b"], "").await.0, 0);
    assert_eq!(crimux.metric("crimux_backend_draining{backend=\"b\"}").await, Some(0.0));
    eventually(SOON, async || {
        let (_, page) = crimux.http("GET", "/").await;
        let (_, hour) = page.split_once("Last hour").unwrap();
        let (hour, _) = hour.split_once("</section>").unwrap();
        let b = hour.split("<th scope=\"row\">b</th>").nth(1).unwrap();
        let bar = ["blank", "ready", "draining"].map(|state| b.contains(&format!("<span class=\"{state}\"")));
        bar == [true; 3] && b.contains(", draining ") && b.contains("<td>ready ")
    })
    .await;

    crimux.client().runtime().run_pod_sandbox(sandbox_config("pod").run("b")).await.unwrap();
    crimux.client().runtime().run_pod_sandbox(sandbox_config("lost").run("kata<b>")).await.unwrap_err();
    eventually(SOON, async || {
        let (_, page) = crimux.http("GET", "/").await;
        page.contains("lost, handler kata&lt;b&gt;, refused") && page.contains("not configured")
    })
    .await;
    crimux.rewrite("nonsense: [");
    crimux.signal(Signal::SIGHUP);
    eventually(SOON, async || {
        crimux.client().runtime().list_pod_sandbox(cri::ListPodSandboxRequest::default()).await.unwrap();
        let (_, page) = crimux.http("GET", "/").await;
        let (_, lately) = page.split_once("Last placements").unwrap();
        lately.contains("<td>b</td><td>b</td>") && lately.contains(">failed <small>")
    })
    .await;
}
