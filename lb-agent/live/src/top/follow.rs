//! Commands, keys and the clock → the state, until the user quits.

use std::time::{Duration, Instant};

use anyhow::Result;
use crossterm::event::{Event, KeyEventKind};
use jiff::Timestamp;
use ratatui::DefaultTerminal;
use serde_json::Value;
use tokio::sync::mpsc::{Sender, channel};
use tokio::task::JoinSet;

use super::action::{Effect, press};
use super::draw::draw;
use super::sample::{COMMANDS, TopSample};
use super::state::{Overlay, TopFlow, TopState};
use crate::lbctl::{FollowedLine, Lbctl};

/// Time until a stream of flows that has ended is begun again.
const AGAIN: Duration = Duration::from_secs(5);
/// Flows of the past that the list begins with.
const PAST: &str = "--last=100";

/// What happens.
enum TopNews {
    Sampled(Result<TopSample>),
    Flow(TopFlow),
    Trouble(String),
    Input(Event),
    Explained { title: String, lines: Vec<String> },
}

/// Follows until the user quits.
pub(super) async fn run(
    lbctl: &Lbctl,
    interval: Duration,
    mut state: TopState,
    terminal: &mut DefaultTerminal,
) -> Result<()> {
    let (sender, mut news) = channel(64);
    let mut tasks = JoinSet::new();
    tasks.spawn(sample_forever(lbctl.clone(), interval, sender.clone()));
    tasks.spawn(flows_forever(lbctl.clone(), sender.clone()));
    let keys = sender.clone();
    // It ends with the process: reading a key cannot be given up.
    std::thread::spawn(move || {
        while let Ok(event) = crossterm::event::read() {
            if keys.blocking_send(TopNews::Input(event)).is_err() {
                return;
            }
        }
    });
    loop {
        terminal.draw(|frame| draw(frame, &state))?;
        let Some(first) = news.recv().await else { return Ok(()) };
        if !take(first, &mut state, lbctl, &sender, &mut tasks) {
            return Ok(());
        }
        // What has come meanwhile is drawn together.
        while let Ok(next) = news.try_recv() {
            if !take(next, &mut state, lbctl, &sender, &mut tasks) {
                return Ok(());
            }
        }
    }
}

/// Takes news into the state. Returns whether to go on.
fn take(
    news: TopNews,
    state: &mut TopState,
    lbctl: &Lbctl,
    sender: &Sender<TopNews>,
    tasks: &mut JoinSet<()>,
) -> bool {
    match news {
        TopNews::Sampled(Ok(sample)) => {
            state.trouble = None;
            state.sampled(sample);
        }
        TopNews::Sampled(Err(error)) => state.trouble = Some(format!("{error:#}")),
        TopNews::Flow(flow) => state.saw(flow),
        TopNews::Trouble(text) => state.trouble = Some(text),
        TopNews::Explained { title, lines } => {
            // The user may have closed it, or asked for another one.
            if let Some(Overlay::Text { title: open, lines: shown, .. }) = &mut state.overlay
                && *open == title
            {
                *shown = lines;
            }
        }
        TopNews::Input(Event::Key(key)) if key.kind == KeyEventKind::Press => {
            match press(state, key) {
                Effect::Quit => return false,
                Effect::Draw => {}
                Effect::Explain(ends) => {
                    let title = format!("explain {}", ends.join(" "));
                    let lines = vec!["asking lbctl ...".to_owned()];
                    state.overlay =
                        Some(Overlay::Text { title: title.clone(), lines, scrolled: 0 });
                    tasks.spawn(explain(lbctl.clone(), title, ends, sender.clone()));
                }
            }
        }
        TopNews::Input(_) => {}
    }
    true
}

/// Two samples and the last flows, for a text.
pub(super) async fn once(
    lbctl: &Lbctl,
    interval: Duration,
    mut state: TopState,
) -> Result<TopState> {
    let begin = Instant::now();
    state.sampled(sample(lbctl, begin).await?);
    let words = ["flows", "-o", "json", PAST].map(str::to_owned);
    let (flows, ()) = tokio::join!(lbctl.run(&words, None), tokio::time::sleep(interval));
    let flows = flows?;
    state.sampled(sample(lbctl, begin).await?);
    let parsed = flows.documents.into_iter().map(serde_json::from_value::<TopFlow>);
    parsed.filter_map(Result::ok).for_each(|flow| state.saw(flow));
    if flows.code != Some(0) {
        state.trouble = flows.remarks.into_iter().next();
    }
    Ok(state)
}

async fn sample(lbctl: &Lbctl, begin: Instant) -> Result<TopSample> {
    let words =
        COMMANDS.map(|command| command.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    let [status, services, drops, maps] = &words;
    let (status, services, drops, maps) = tokio::try_join!(
        lbctl.run(status, None),
        lbctl.run(services, None),
        lbctl.run(drops, None),
        lbctl.run(maps, None),
    )?;
    let time = format!("{:.0}", Timestamp::now());
    Ok(TopSample::of(begin.elapsed().as_secs_f64(), time, &[status, services, drops, maps]))
}

async fn sample_forever(lbctl: Lbctl, interval: Duration, sender: Sender<TopNews>) {
    let begin = Instant::now();
    loop {
        if sender.send(TopNews::Sampled(sample(&lbctl, begin).await)).await.is_err() {
            return;
        }
        tokio::time::sleep(interval).await;
    }
}

async fn flows_forever(lbctl: Lbctl, sender: Sender<TopNews>) {
    let words = ["flows", "-f", "-o", "json", PAST].map(str::to_owned);
    let mut last = PAST;
    loop {
        let mut words = words.clone();
        if let Some(word) = words.last_mut() {
            last.clone_into(word);
        }
        if let Some(trouble) = flows_once(&lbctl, &words, &sender).await
            && sender.send(TopNews::Trouble(trouble)).await.is_err()
        {
            return;
        }
        last = "--last=0";
        tokio::time::sleep(AGAIN).await;
    }
}

/// Reads a stream to its end, and returns why it has ended.
async fn flows_once(lbctl: &Lbctl, words: &[String], sender: &Sender<TopNews>) -> Option<String> {
    let mut remark = None;
    let mut followed = match lbctl.follow(words) {
        Ok(followed) => followed,
        Err(error) => return Some(format!("{error:#}")),
    };
    loop {
        match followed.next().await {
            Ok(Some(FollowedLine::Row(row))) => {
                let Ok(flow) = serde_json::from_str::<TopFlow>(&row) else { continue };
                sender.send(TopNews::Flow(flow)).await.ok()?;
            }
            Ok(Some(FollowedLine::Remark(text))) => remark = Some(text),
            Ok(None) => return remark,
            Err(error) => return Some(format!("{error:#}")),
        }
    }
}

async fn explain(lbctl: Lbctl, title: String, ends: [String; 2], sender: Sender<TopNews>) {
    let [from, to] = ends;
    let words = ["explain", "-o", "json", "--"].map(str::to_owned).into_iter().chain([from, to]);
    let lines = match lbctl.run(&words.collect::<Vec<_>>(), None).await {
        Err(error) => vec![format!("{error:#}")],
        Ok(output) => match output.documents.first() {
            Some(document) => explanation(document),
            None => output.remarks,
        },
    };
    // The screen may be gone.
    drop(sender.send(TopNews::Explained { title, lines }).await);
}

/// The lines of an explanation: the answer first.
fn explanation(document: &Value) -> Vec<String> {
    let text = |value: &Value, name: &str| {
        value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let list = |name: &str| document.get(name).and_then(Value::as_array).into_iter().flatten();
    let word = match text(document, "outcome").as_str() {
        "delivered" => "DELIVERED",
        "stopped" => "STOPPED",
        _ => "CANNOT TELL",
    };
    let mut lines = vec![format!("{word}: {}", text(document, "verdict"))];
    lines.extend(list("steps").map(|step| {
        let state = match text(step, "state").as_str() {
            "ok" => "ok",
            "stop" => "STOP",
            _ => "?",
        };
        format!("{state:4} {:15} {}", text(step, "what"), text(step, "text"))
    }));
    for (name, head) in [("because", "because"), ("toFix", "to fix"), ("assumed", "assumed")] {
        lines.extend(list(name).filter_map(Value::as_str).map(|line| format!("{head}: {line}")));
    }
    let code = text(document, "code");
    lines.extend((!code.is_empty()).then(|| format!("code: {code}")));
    lines
}
