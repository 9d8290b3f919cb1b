//! The status page in a real browser: headless Chromium, without scripts, light and dark.
//!
//! It runs only where `CRIMUX_BROWSER=1` says that a Chromium is there; `dev/test browser` sees to that. With
//! `CRIMUX_SCREENSHOTS=DIRECTORY` the pictures in the docs are taken.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support::{Crimux, SOON};
use nix::sys::signal::Signal;
use testkit::client::sandbox_config;
use testkit::eventually;
use testkit::runtime::SimRuntime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

/// How long Chromium may take, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tells whether a browser is there, and says so if not.
fn has_browser() -> bool {
    let wanted = std::env::var_os("CRIMUX_BROWSER").is_some_and(|value| value == "1");
    if !wanted {
        testkit::bed::skipped("CRIMUX_BROWSER=1 is not set (dev/test browser)");
    }
    wanted
}

/// Chromium with a new profile below this directory: one that has just ended may still hold its own.
fn chromium(profiles: &Path) -> Command {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let profile = profiles.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
    let mut command = Command::new("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
    ]);
    command.arg(format!("--user-data-dir={}", profile.display())).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs it to its end and returns its output.
async fn output(mut command: Command) -> String {
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.expect("Chromium ends").unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8(ended.stdout).unwrap()
}

/// A node with a backend in each state, and a few placements.
struct World {
    crimux: Crimux,
    profile: tempfile::TempDir,
    _backends: Vec<SimRuntime>,
}

impl World {
    async fn new() -> Self {
        let containerd =
            SimRuntime::builder("containerd").handlers(["runc", "runsc"]).sandboxes(12, 31).start().await;
        let kata = SimRuntime::builder("containerd").handlers(["kata-qemu"]).sandboxes(3, 5).start().await;
        let old = SimRuntime::builder("containerd").abilities(|old| old.runtime_version = "1.7.27".into());
        let old = old.sandboxes(7, 12).start().await;
        let edge = SimRuntime::builder("cri-o").tcp().sandboxes(2, 2).start().await;
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().display();
        let yaml = format!(
            "listen: unix://{at}/crimux.sock\nlisten_owner: self\nstate_dir: {at}/state\n\
             admin: {{ socket: {at}/admin.sock, http: \"127.0.0.1:0\" }}\n\
             default_backend: containerd\n\
             backends:\n  containerd: {{ endpoint: \"{}\" }}\n  kata: {{ endpoint: \"{}\" }}\n  \
             containerd-old: {{ endpoint: \"{}\" }}\n  edge: {{ endpoint: \"{}\" }}\n\
             handlers:\n  runc: {{ backend: containerd, handler: runc }}\n  gvisor: {{ backend: containerd, handler: runsc }}\n  \
             kata: {{ backend: kata, handler: kata-qemu }}\n  edge: {{ backend: edge, handler: runc }}\n  \
             canary: {{ split: [ {{ backend: containerd, handler: runc, weight: 9 }}, {{ backend: containerd-old, handler: runc, weight: 1 }} ] }}\n",
            containerd.endpoint(),
            kata.endpoint(),
            old.endpoint(),
            edge.endpoint()
        );
        let crimux = Crimux::start_in(dir, &yaml);
        crimux.wait_ready().await;
        for (number, handler) in ["", "runc", "gvisor", "kata", "firecracker", "edge"].into_iter().enumerate()
        {
            if handler == "edge" {
                edge.stop().await;
                eventually(SOON, async || {
                    crimux.metric("crimux_backend_up{backend=\"edge\"}").await == Some(0.0)
                })
                .await;
            }
            let request = sandbox_config(&format!("pod-{number}")).run(handler);
            let answered = crimux.client().runtime().run_pod_sandbox(request).await;
            assert_eq!(answered.is_ok(), !["firecracker", "edge"].contains(&handler), "{handler}");
        }
        crimux.rewrite(&(yaml + "drain_timeout: 10s\n"));
        crimux.signal(Signal::SIGHUP);
        let reloaded = "crimux_config_reloads_total{result=\"ok\"}";
        eventually(SOON, async || crimux.metric(reloaded).await == Some(1.0)).await;
        drained(&crimux, "containerd-old").await;
        Self { crimux, profile: tempfile::tempdir().unwrap(), _backends: vec![containerd, kata, old, edge] }
    }

    fn url(&self) -> String {
        format!("http://{}/", self.crimux.http_address())
    }

    /// Takes a picture of this width and returns the red, green and blue of its first pixel.
    async fn picture(&self, dark: bool, width: u32, to: &Path) -> [u8; 3] {
        // Chromium has no window below 500 pixels: the page is in a frame of this width then, and is cut out.
        let (window, url) =
            if width < 500 { (500, framed(self.crimux.http_address()).await) } else { (width, self.url()) };
        let height = if width < 500 { FRAME_HEIGHT } else { 1280 };
        let mut command = chromium(self.profile.path());
        command.arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)));
        command.arg(format!("--window-size={window},{height}"));
        // Less than the time after which the page loads itself again.
        command.args(["--virtual-time-budget=2000", &format!("--screenshot={}", to.display()), &url]);
        output(command).await;
        cut(to, width)
    }
}

/// Cuts a picture to this width, and returns the red, green and blue of its first pixel.
fn cut(file: &Path, width: u32) -> [u8; 3] {
    let decoder = png::Decoder::new(std::io::BufReader::new(std::fs::File::open(file).unwrap()));
    let mut reader = decoder.read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let frame = reader.next_frame(&mut pixels).unwrap();
    if frame.width > width {
        let bytes = frame.color_type.samples();
        let lines = pixels.chunks(frame.line_size).take(frame.height as usize);
        let cut: Vec<_> = lines.flat_map(|line| &line[..width as usize * bytes]).copied().collect();
        let mut encoder = png::Encoder::new(std::fs::File::create(file).unwrap(), width, frame.height);
        encoder.set_color(frame.color_type);
        encoder.set_depth(frame.bit_depth);
        encoder.set_compression(png::Compression::High);
        encoder.write_header().unwrap().write_image_data(&cut).unwrap();
    }
    [pixels[0], pixels[1], pixels[2]]
}

/// Drains a backend, as an operator does.
async fn drained(crimux: &Crimux, backend: &str) {
    let socket = crimux.dir.path().join("admin.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_crimux"));
    let status = command.args(["backend", "drain", backend, "--socket"]).arg(socket).status().await.unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn the_page_is_complete_without_scripts_and_follows_the_colour_scheme() {
    if !has_browser() {
        return;
    }
    let world = World::new().await;
    let mut command = chromium(world.profile.path());
    command.arg("--dump-dom").arg(world.url());
    let page = output(command).await;
    for wanted in [
        "2 of 4 backends ready",
        "1.7.27",
        "draining",
        "cannot be connected",
        "backend edge is down",
        "100 %",
        "pod-5, handler edge, refused",
    ] {
        assert!(page.contains(wanted), "{wanted}\n{page}");
    }
    // Its policy forbids scripts to the browser; there is none either.
    assert!(!page.contains("<script"), "{page}");
    let kept = std::env::var_os("CRIMUX_SCREENSHOTS").map(PathBuf::from);
    if kept.is_some() {
        // The pictures are to show some minutes of each backend's state.
        tokio::time::sleep(Duration::from_secs(240)).await;
        let mut kubelet = world.crimux.client().runtime();
        kubelet.list_pod_sandbox(testkit::cri::ListPodSandboxRequest::default()).await.unwrap();
    }
    let directory = kept.unwrap_or_else(|| world.profile.path().to_owned());
    for width in [1280, 400] {
        for (name, dark, ground) in [("light", false, [0xff, 0xff, 0xff]), ("dark", true, [0x0d, 0x11, 0x17])]
        {
            let file = directory.join(format!("status-page-{width}-{name}.png"));
            assert_eq!(world.picture(dark, width, &file).await, ground, "{}", file.display());
            assert!(std::fs::metadata(&file).unwrap().len() <= 250_000, "{}", file.display());
        }
    }
}

/// The height of the frame, in pixels: the page at 400 pixels fits.
const FRAME_HEIGHT: u32 = 1750;

/// A page that shows another at 400 pixels, and writes into itself how wide that one wants to be.
const FRAME: &str = "<!doctype html><meta name=color-scheme content=\"light dark\"><body style=\"margin:0\">
<iframe id=f style=\"display:block;border:0\" width=400 height=1750 src=\"/\"></iframe><pre id=said></pre><script>
const f = document.getElementById('f');
f.onload = () => {
  const page = f.contentDocument;
  const wide = [...page.querySelectorAll('body *')].filter(it => !it.closest('.scroll') && it.getBoundingClientRect().right > 400.5);
  // Prose inside a table that scrolls must still fit, and what is red must be seen without scrolling.
  const cut = [...page.querySelectorAll('caption span, td.error span')].filter(it => it.getBoundingClientRect().right > 400.5);
  const hidden = [...page.querySelectorAll('.bad, .down .state')].filter(it => it.getBoundingClientRect().right > 400.5);
  const goesOn = [...page.querySelectorAll('.scroll')].filter(it => it.scrollWidth > it.clientWidth);
  const unmarked = goesOn.filter(it => !f.contentWindow.getComputedStyle(it).backgroundImage.includes('gradient'));
  document.getElementById('said').textContent =
    'width=' + page.documentElement.scrollWidth + ' wide=' + wide.map(it => it.tagName).join() + ' cut=' + cut.length + ' hidden=' + hidden.length + ' unmarked=' + unmarked.length + ' sections=' + page.querySelectorAll('section').length;
};
</script>";

#[tokio::test]
async fn at_400_pixels_nothing_scrolls_sideways_but_a_table() {
    if !has_browser() {
        return;
    }
    let world = World::new().await;
    let url = framed(world.crimux.http_address()).await;
    let mut command = chromium(world.profile.path());
    command.args(["--virtual-time-budget=20000", "--dump-dom", &url]);
    let page = output(command).await;
    let (_, said) = page.rsplit_once("<pre id=\"said\">").expect("the frame has a place for what it finds");
    let said = said.split('<').next().unwrap();
    assert!(said.starts_with("width=400 wide= cut=0 hidden=0 unmarked=0 sections=5"), "{said}");
}

/// Serves [`FRAME`] at `/frame`, and everything else from crimux, so that both are of one origin; crimux's
/// page forbids to be framed, which is taken off.
async fn framed(address: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/frame", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((visitor, _)) = listener.accept().await {
            tokio::spawn(answer_framed(visitor, address.clone()));
        }
    });
    url
}

async fn answer_framed(mut visitor: TcpStream, address: String) {
    let mut request = vec![0; 1 << 16];
    // A request of a browser arrives in one piece.
    let Ok(length @ 1..) = visitor.read(&mut request).await else { return };
    let body = if request[..length].starts_with(b"GET /frame ") {
        FRAME.to_owned()
    } else {
        let mut crimux = TcpStream::connect(address).await.unwrap();
        crimux.write_all(b"GET /paused HTTP/1.0\r\nhost: crimux\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        crimux.read_to_string(&mut reply).await.unwrap();
        reply.split_once("\r\n\r\n").unwrap().1.to_owned()
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    visitor.write_all((head + &body).as_bytes()).await.ok();
}

#[tokio::test]
async fn the_page_loads_itself_anew() {
    if !has_browser() {
        return;
    }
    let world = World::new().await;
    let (url, visits) = counted(world.crimux.http_address()).await;
    let mut command = chromium(world.profile.path());
    let browser: Child = command.args(["--remote-debugging-port=0", &url]).spawn().unwrap();
    eventually(PATIENCE, async || visits.load(Ordering::Relaxed) >= 3).await;
    drop(browser);
}

/// Stands before an address and counts how often its first page is asked for.
async fn counted(address: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let visits = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&visits);
    tokio::spawn(async move {
        while let Ok((visitor, _)) = listener.accept().await {
            tokio::spawn(pass(visitor, address.clone(), Arc::clone(&counter)));
        }
    });
    (url, visits)
}

/// Passes one connection on; a request of a browser arrives in one piece.
async fn pass(visitor: TcpStream, address: String, visits: Arc<AtomicUsize>) {
    let (mut asking, mut shown) = visitor.into_split();
    let (mut answering, mut asked) = TcpStream::connect(address).await.unwrap().into_split();
    tokio::spawn(async move { tokio::io::copy(&mut answering, &mut shown).await });
    let mut request = vec![0; 1 << 16];
    while let Ok(length @ 1..) = asking.read(&mut request).await {
        visits.fetch_add(usize::from(request.starts_with(b"GET / ")), Ordering::Relaxed);
        asked.write_all(&request[..length]).await.unwrap();
    }
}
