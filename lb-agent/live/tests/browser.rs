//! The page of `lbctl ui` in Chromium, before the real server. In the place of lbctl is a script that prints what lbctl printed on
//! a cluster of two nodes (`recorded/`). Every test fails on an error of a script and on a request to another server.
//!
//! `LB_SHOTS` = a directory: pictures of all views are left there.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chromiumoxide::cdp::browser_protocol::emulation::{
    MediaFeature, SetDeviceMetricsOverrideParams,
};
use chromiumoxide::cdp::browser_protocol::log::EventEntryAdded;
use chromiumoxide::cdp::browser_protocol::network::EventRequestWillBeSent;
use chromiumoxide::cdp::browser_protocol::page::CaptureScreenshotFormat;
use chromiumoxide::cdp::js_protocol::runtime::EventExceptionThrown;
use chromiumoxide::page::ScreenshotParams;
use chromiumoxide::{Browser, BrowserConfig, Page};
use futures_util::StreamExt as _;
use lb_live::lbctl::Lbctl;
use lb_live::ui::{self, UiArgs};
use serde_json::Value;

/// Time in which anything expected must happen.
const SOON: Duration = Duration::from_secs(30);

/// The recorded answers by command. `$dir` has the files.
const SCRIPT: &str = r#"
case "$*" in
  status*) cat "$dir/status.json" ;;
  services*) cat "$dir/services.json" ;;
  pods*) cat "$dir/pods.json" ;;
  "flows --by"*) cat "$dir/pairs.json" ;;
  drops*) cat "$dir/drops.json" ;;
  "policy list"*) cat "$dir/policies.json" ;;
  "policy show"*) cat "$dir/policy.json" ;;
  explain*) cat "$dir/explain.json" ;;
  "flows -f"*) cat "$dir/flows.json"; exec sleep 1000 ;;
  flows*) cat "$dir/flows.json" ;;
  *) echo "error: unrecognized subcommand '$2'" >&2; exit 2 ;;
esac"#;

/// A server with a browser before it.
struct Stage {
    url: String,
    page: Page,
    browser: Browser,
    profile: PathBuf,
    faults: Arc<Mutex<Vec<String>>>,
}

/// Runs a test with a page whose lbctl is this script.
fn on_stage<F: Future<Output = ()>>(name: &str, script: &str, test: impl FnOnce(Arc<Stage>) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stage = Arc::new(Stage::set(name, script).await);
        test(Arc::clone(&stage)).await;
        let faults = stage.faults.lock().unwrap().clone();
        let stage = Arc::into_inner(stage).unwrap();
        stage.remove().await;
        assert!(faults.is_empty(), "{faults:#?}");
    });
}

/// Standard output of the server.
struct Output(Sender<String>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The test reads the first line only.
        drop(self.0.send(String::from_utf8_lossy(bytes).into_owned()));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the server and returns its URL, which is the first line that it prints.
fn serve(script: &str) -> String {
    let recorded = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let script = format!("dir='{}'\n{script}", recorded.display());
    let flags = vec!["-c".into(), script.into(), "lbctl".into()];
    let lbctl = Lbctl::new(PathBuf::from("/bin/sh"), flags);
    let (sender, printed): (_, Receiver<String>) = channel();
    // It ends with the process.
    std::thread::spawn(move || {
        let args = UiArgs { port: 0, open: false };
        ui::run(&args, lbctl, &mut Output(sender)).unwrap();
    });
    let mut text = String::new();
    while !text.contains('\n') {
        text.push_str(&printed.recv_timeout(SOON).unwrap());
    }
    text.lines().next().unwrap().to_owned()
}

impl Stage {
    async fn set(name: &str, script: &str) -> Self {
        let url = serve(script);
        let profile = std::env::temp_dir().join(format!("lb-ui-{}-{name}", std::process::id()));
        let config = BrowserConfig::builder()
            // The sandbox of Chromium does not work as root; the only page is our own.
            .no_sandbox()
            .new_headless_mode()
            .user_data_dir(&profile)
            .viewport(None)
            .build()
            .unwrap();
        let (browser, mut handler) = Browser::launch(config).await.unwrap();
        tokio::spawn(async move { while handler.next().await.is_some() {} });
        let page = browser.new_page("about:blank").await.unwrap();
        let faults = Arc::new(Mutex::new(Vec::new()));
        watch(&page, &url, &faults).await;
        Self { url, page, browser, profile, faults }
    }

    async fn remove(mut self) {
        self.browser.close().await.unwrap();
        self.browser.wait().await.unwrap();
        std::fs::remove_dir_all(self.profile).unwrap();
    }

    /// Sets the size of the window and what the system prefers.
    async fn look(&self, (width, height): (i64, i64), scheme: &str) {
        let size = SetDeviceMetricsOverrideParams::builder();
        let size = size.width(width).height(height).device_scale_factor(1.0).mobile(width < 640);
        self.page.execute(size.build().unwrap()).await.unwrap();
        let feature = MediaFeature::new("prefers-color-scheme", scheme);
        self.page.emulate_media_features(vec![feature]).await.unwrap();
    }

    /// Opens a view of the page.
    async fn open(&self, view: &str) {
        // A new document: the fragment alone would only change the view.
        self.page.goto("about:blank").await.unwrap();
        self.page.goto(format!("{}{view}", self.url)).await.unwrap();
    }

    /// Evaluates an expression in the page.
    async fn value(&self, expression: &str) -> Value {
        let result = self.page.evaluate(expression).await;
        result
            .unwrap_or_else(|error| panic!("{expression}: {error}"))
            .into_value()
            .unwrap_or(Value::Null)
    }

    /// Waits until an expression is true.
    async fn until(&self, expression: &str) {
        let deadline = Instant::now() + SOON;
        while self.value(&format!("Boolean({expression})")).await != Value::Bool(true) {
            if Instant::now() > deadline {
                let text = self.value("document.body.innerText").await;
                panic!("never: {expression}\n{text}\n{:#?}", self.faults.lock().unwrap());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until the view contains a text.
    async fn shows(&self, text: &str) {
        let text = Value::from(text);
        self.until(&format!("document.body.innerText.includes({text})")).await;
    }

    /// Presses keys, one after the other.
    async fn press(&self, keys: &[&str]) {
        let body = self.page.find_element("body").await.unwrap();
        for key in keys {
            body.press_key(*key).await.unwrap();
        }
    }

    async fn shoot(&self, name: &str) {
        let Some(dir) = std::env::var_os("LB_SHOTS") else { return };
        let png = ScreenshotParams::builder().format(CaptureScreenshotFormat::Png).build();
        let path = Path::new(&dir).join(format!("{name}.png"));
        self.page.save_screenshot(png, path).await.unwrap();
    }
}

/// Notes exceptions, errors of the console (refused by the Content-Security-Policy, too), and requests to other servers.
async fn watch(page: &Page, url: &str, faults: &Arc<Mutex<Vec<String>>>) {
    page.enable_log().await.unwrap();
    page.enable_runtime().await.unwrap();
    let mut thrown = page.event_listener::<EventExceptionThrown>().await.unwrap();
    let mut logged = page.event_listener::<EventEntryAdded>().await.unwrap();
    let mut sent = page.event_listener::<EventRequestWillBeSent>().await.unwrap();
    let (url, faults) = (url.to_owned(), Arc::clone(faults));
    tokio::spawn(async move {
        loop {
            let fault = tokio::select! {
                Some(event) = thrown.next() => Some(format!("exception: {:?}", event.exception_details)),
                Some(event) = logged.next() => Some(format!("console: {} {:?}", event.entry.text, event.entry.url)),
                Some(event) = sent.next() => {
                    let target = &event.request.url;
                    let own = ["data:", "about:"].iter().any(|scheme| target.starts_with(scheme));
                    (!own && !target.starts_with(&url)).then(|| format!("request to {target}"))
                }
                else => return,
            };
            faults.lock().unwrap().extend(fault);
        }
    });
}

/// Views, a text that each must show, and the selector of its rows with their number.
const VIEWS: [(&str, &str, &str, &str, u64); 7] = [
    ("matrix", "#/matrix", "115 open flows, 32 denied", ".matrix button", 8),
    ("map", "#/map/shop", "calls in", ".map .own", 4),
    ("flows", "#/flows", "following; 40 flows", ".rows tbody tr", 40),
    ("policy", "#/policies/db%2Forders-clients", "Pods with app=orders", ".rule", 2),
    (
        "explain",
        "#/explain?from=monitoring/prometheus-0&to=svc:db/orders",
        "STOPPED: monitoring/prometheus-0",
        ".steps li",
        6,
    ),
    ("services", "#/services", "shop/mail", ".rows tbody tr", 4),
    ("status", "#/status", "POLICY_ISOLATED", "details[open]", 2),
];

#[test]
fn every_view_shows_its_rows_on_desks_and_phones_in_light_and_dark() {
    on_stage("views", SCRIPT, |stage| async move {
        for (size, scheme) in [
            ((1280, 900), "light"),
            ((1280, 900), "dark"),
            ((390, 844), "light"),
            ((390, 844), "dark"),
        ] {
            stage.look(size, scheme).await;
            for (name, view, text, selector, rows) in VIEWS {
                stage.open(view).await;
                stage.shows(text).await;
                stage
                    .until(&format!("document.querySelectorAll('{selector}').length === {rows}"))
                    .await;
                stage
                    .until("document.getElementById('health').textContent.includes('OK · 2 nodes')")
                    .await;
                let wide = stage.value("document.documentElement.scrollWidth - innerWidth").await;
                assert_eq!(wide, 0, "{name} at {size:?} is wider than the window");
                let pale = stage.value(include_str!("browser/contrast.js")).await;
                assert_eq!(pale, serde_json::json!([]), "{name}, {scheme}: contrast below 4.5");
                let nameless = stage.value(include_str!("browser/names.js")).await;
                assert_eq!(nameless, serde_json::json!([]), "{name}: elements without a name");
                stage.shoot(&format!("{name}-{}-{scheme}", size.0)).await;
            }
        }
    });
}

#[test]
fn keys_lead_through_the_page() {
    on_stage("keys", SCRIPT, |stage| async move {
        stage.look((1280, 900), "light").await;
        stage.open("").await;
        stage.until("document.querySelectorAll('.matrix button').length === 8").await;
        let focused = "document.activeElement.dataset.key";
        stage.press(&["j"]).await;
        assert_eq!(stage.value(focused).await, "cell monitoring db");
        stage.press(&["j", "l"]).await;
        assert_eq!(stage.value(focused).await, "cell shop kube-system");
        stage.press(&["h", "Enter"]).await;
        stage.shows("shop to db").await;
        stage.until("location.hash.includes('from=shop')").await;
        assert_eq!(stage.value(focused).await, "cell shop db", "the cell keeps the focus");
        stage.press(&["Escape"]).await;
        stage.shows("All pairs, denied ones first").await;
        stage.press(&["/"]).await;
        stage.until("document.activeElement.type === 'search'").await;
        stage
            .page
            .find_element("input[type=search]")
            .await
            .unwrap()
            .type_str("prometheus")
            .await
            .unwrap();
        stage.until("document.querySelectorAll('.matrix button').length === 3").await;
        assert_eq!(stage.value("document.activeElement.value").await, "prometheus");
        stage.press(&["Escape", "2"]).await;
        stage.shows("Flows as they happen").await;
        stage.shows("following; 40 flows").await;
        stage.press(&[" "]).await;
        stage.shows("paused").await;
        stage.press(&["?"]).await;
        stage.until("document.getElementById('help').open").await;
        stage.press(&["Escape"]).await;
        stage.until("!document.getElementById('help').open").await;
        stage.press(&["t"]).await;
        stage.until("document.documentElement.dataset.theme === 'dark'").await;
        for (key, head) in [
            ("3", "Policies"),
            ("4", "Explain a flow"),
            ("5", "Services"),
            ("6", "Status"),
            ("1", "Who calls what"),
        ] {
            stage.press(&[key]).await;
            stage.until(&format!("document.querySelector('h1')?.textContent === '{head}'")).await;
        }
    });
}

#[test]
fn a_policy_is_tried_by_the_text_that_is_pasted() {
    // It answers with the first line of its input.
    let script = format!(
        r#"case "$*" in "policy try -f - -o json"|"policy try -o json -f -")
  cat <<END
{{"node": "a", "flows": 4213, "denied": 12, "recentlyDenied": 3, "allowed": 1, "complete": true,
 "issues": [{{"object": "x", "field": "line", "message": "$(head -n 1)"}}],
 "items": [{{"change": "denied", "count": 12, "src": {{"name": "shop/cart", "address": ""}}, "dst": {{"name": "db/orders", "address": ""}},
 "port": 80, "protocol": "TCP", "via": "", "direction": "ingress", "by": {{"policies": ["db/tried"], "rule": ""}}}}]}}
END
  exit 2 ;;
esac
{SCRIPT}"#
    );
    on_stage("try", &script, |stage| async move {
        stage.open("#/policies").await;
        stage.shows("What if").await;
        let area = stage.page.find_element("textarea").await.unwrap();
        area.click().await.unwrap().type_str("kind: NetworkPolicy").await.unwrap();
        stage.page.find_element("button.primary").await.unwrap().click().await.unwrap();
        stage.shows("Of 4,213 live flows, 12 would be denied").await;
        stage.shows("line: kind: NetworkPolicy").await;
        stage.shows("db/tried default-deny").await;
    });
}

#[test]
fn an_lbctl_that_cannot_try_policies_is_named_as_the_cause() {
    on_stage("old", SCRIPT, |stage| async move {
        stage.open("#/policies").await;
        stage.shows("What if").await;
        stage
            .page
            .find_element("textarea")
            .await
            .unwrap()
            .click()
            .await
            .unwrap()
            .type_str("kind: x")
            .await
            .unwrap();
        stage.page.find_element("button.primary").await.unwrap().click().await.unwrap();
        stage.shows("This lbctl cannot try policies").await;
    });
}

#[test]
fn values_of_objects_stay_text() {
    let hostile = r#"<img src=x onerror=alert(1)><script>alert(2)</script>"#;
    let policy = format!(
        r#"{{"items": [{{"namespace": "a", "name": "{hostile}", "tier": "NetworkPolicy", "priority": 0, "subjects": 1, "rules": 0, "hits": 0, "lastHit": null, "state": "error", "issue": "{hostile}"}}]}}"#
    );
    let script = format!(
        "case \"$*\" in 'policy list'*) printf '%s' '{policy}'; exit 0 ;; policy*|explain*) echo '{hostile}' >&2; exit 1 ;; esac\n{SCRIPT}"
    );
    on_stage("hostile", &script, |stage| async move {
        for view in ["#/policies", "#/policies/x", "#/explain?from=a&to=b"] {
            stage.open(view).await;
            stage.shows(hostile).await;
            assert_eq!(
                stage.value("document.querySelectorAll('img, main script').length").await,
                0
            );
        }
    });
}

#[test]
fn without_an_agent_every_view_says_why() {
    let script = "echo 'lbctl: no pinned maps in /sys/fs/bpf/lb: is lb-agent running?' >&2; exit 1";
    on_stage("none", script, |stage| async move {
        for view in [
            "#/matrix",
            "#/map/a",
            "#/flows",
            "#/policies",
            "#/explain?from=a&to=b",
            "#/services",
            "#/status",
        ] {
            stage.open(view).await;
            stage.shows("no pinned maps in /sys/fs/bpf/lb").await;
            stage.shows("no answer").await;
        }
    });
}
