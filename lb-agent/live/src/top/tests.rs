//! The screen of a recorded cluster of two nodes, and what keys do to it.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use expect_test::{Expect, expect};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use super::action::{Effect, press};
use super::draw::draw;
use super::sample::TopSample;
use super::state::{Overlay, Pane, TopFlow, TopState};
use super::text;
use super::theme::Theme;
use crate::lbctl::CommandOutput;

/// What lbctl printed on the recorded cluster.
fn recorded(text: &str) -> CommandOutput {
    let documents = serde_json::Deserializer::from_str(text).into_iter().map(Result::unwrap);
    CommandOutput { code: Some(0), documents: documents.collect(), remarks: Vec::new() }
}

fn sample(at: f64) -> TopSample {
    let answers = [
        include_str!("../../tests/recorded/status.json"),
        include_str!("../../tests/recorded/services.json"),
        include_str!("../../tests/recorded/drops.json"),
        include_str!("../../tests/recorded/maps.json"),
    ];
    TopSample::of(at, "2026-11-29T22:06:42Z".to_owned(), &answers.map(recorded))
}

/// The recorded cluster; two seconds before it had fewer flows and drops.
fn state(colors: bool) -> TopState {
    let mut state = TopState::new("kind-lb".to_owned(), Theme::new(colors));
    let mut before = sample(10.0);
    before.services.iter_mut().for_each(|service| service.flows /= 2);
    before.drops.iter_mut().take(1).for_each(|drop| drop.count -= 2);
    before.counters.values_mut().for_each(|count| *count -= *count / 10);
    state.sampled(before);
    state.sampled(sample(12.0));
    for document in recorded(include_str!("../../tests/recorded/flows.json")).documents {
        state.saw(serde_json::from_value::<TopFlow>(document).unwrap());
    }
    state
}

fn key(state: &mut TopState, code: KeyCode) -> Effect {
    press(state, KeyEvent::new(code, KeyModifiers::NONE))
}

fn check(state: &TopState, (width, height): (u16, u16), want: Expect) {
    want.assert_eq(&text(state, width, height).unwrap());
}

#[test]
fn the_screen_fits_80_columns_and_24_rows() {
    check(
        &state(true),
        (80, 24),
        expect![[r#"
            lb top  kind-lb  nodes 2/2  no issues  OK
            2026-11-29T22:06:42Z  new flows/s: Pods 168, Services 350, outside 0  drops/s 1.
            ┌ 1 Services by flows (4) ─────────────┐┌ 2 Drops (3) ─────────────────────────┐
            │ SERVICE           READY  FLOWS    ±/s││REASON             DIR     /s    TOTAL│
            │ shop/web:http       1/1     63    +16││NO_ENDPOINTS       out    1.0        5│
            │ db/orders:sql       1/1     32   +8.0││POLICY_ISOLATED    in       0       26│
            │ kube-system/kube-   1/1     22   +5.5││POLICY_ISOLATED    out      0        6│
            │!shop/mail:smtp      0/0      0      0││                                      │
            │                                      ││                                      │
            │                                      ││                                      │
            │                                      ││                                      │
            │                                      ││                                      │
            └──────────────────────────────────────┘└──────────────────────────────────────┘
            ┌ 3 Flows (40) ────────────────────────────────────────────────────────────────┐
            │TIME     VERDICT     FROM               TO                  BY                │
            │22:06:42 dropped     shop/checkout-84c5 db/orders-0:80      db/default-deny,db│
            │22:06:42 dropped     monitoring/prometh db/orders-0:80      db/default-deny,db│
            │22:06:41 dropped     shop/web-5f6d7c8b9 db/orders-0:80      db/default-deny,db│
            │22:06:41 dropped     shop/checkout-84c5 db/orders-0:80      db/default-deny,db│
            │22:06:41 dropped     shop/cart-7d4b9c6f 172.31.0.12:22      shop/egress defaul│
            │22:06:40 dropped     monitoring/prometh db/orders-0:80      db/default-deny,db│
            │22:06:40 dropped     shop/web-5f6d7c8b9 db/orders-0:80      db/default-deny,db│
            └──────────────────────────────────────────────────────────────────────────────┘
            kept [-----] 0%  ct [-----] 0%  affinity [-----] 0%     ? keys  / filter  q quit
        "#]],
    );
}

#[test]
fn a_wider_screen_shows_more() {
    check(
        &state(true),
        (120, 30),
        expect![[r#"
            lb top  kind-lb  nodes 2/2  no issues  OK
            2026-11-29T22:06:42Z  new flows/s: Pods 168, Services 350, outside 0  drops/s 1.0
            ┌ 1 Services by flows (4) ─────────────────────────────────┐┌ 2 Drops (3) ─────────────────────────────────────────────┐
            │ SERVICE                               READY  FLOWS    ±/s││REASON                                 DIR     /s    TOTAL│
            │ shop/web:http                           1/1     63    +16││NO_ENDPOINTS                           out    1.0        5│
            │ db/orders:sql                           1/1     32   +8.0││POLICY_ISOLATED                        in       0       26│
            │ kube-system/kube-dns:dns                1/1     22   +5.5││POLICY_ISOLATED                        out      0        6│
            │!shop/mail:smtp                          0/0      0      0││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            │                                                          ││                                                          │
            └──────────────────────────────────────────────────────────┘└──────────────────────────────────────────────────────────┘
            ┌ 3 Flows (40) ────────────────────────────────────────────────────────────────────────────────────────────────────────┐
            │TIME     VERDICT     FROM                             TO                              BY                              │
            │22:06:42 dropped     shop/checkout-84c5f9d7bb-q6wzt   db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:42 dropped     monitoring/prometheus-0          db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:41 dropped     shop/web-5f6d7c8b9d-m4k7q        db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:41 dropped     shop/checkout-84c5f9d7bb-q6wzt   db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:41 dropped     shop/cart-7d4b9c6f5d-x2x8k       172.31.0.12:22                  shop/egress default-deny        │
            │22:06:40 dropped     monitoring/prometheus-0          db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:40 dropped     shop/web-5f6d7c8b9d-m4k7q        db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:40 dropped     shop/checkout-84c5f9d7bb-q6wzt   db/orders-0:80                  db/default-deny,db/orders-client│
            │22:06:40 dropped     shop/cart-7d4b9c6f5d-x2x8k       172.31.0.12:22                  shop/egress default-deny        │
            │22:06:39 dropped     monitoring/prometheus-0          db/orders-0:80                  db/default-deny,db/orders-client│
            └──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────┘
            kept [-----] 0%  ct [-----] 0%  affinity [-----] 0%  backends [-----] 0%  devs [-----] 0%       ? keys  / filter  q quit
        "#]],
    );
}

#[test]
fn before_the_first_answer_the_screen_says_what_it_waits_for() {
    let mut state = TopState::new(String::new(), Theme::new(false));
    assert!(text(&state, 80, 24).unwrap().starts_with("lb top  asking lbctl ..."));
    state.trouble = Some("no pinned maps in /sys/fs/bpf/lb".to_owned());
    assert!(text(&state, 80, 24).unwrap().starts_with("lb top  no pinned maps"));
}

#[test]
fn without_an_answer_the_first_line_says_why_and_no_rate_is_claimed() {
    let mut state = TopState::new(String::new(), Theme::new(false));
    let remarks = vec!["no pinned maps".to_owned()];
    state.sampled(TopSample { remarks: remarks.clone(), ..TopSample::default() });
    state.sampled(TopSample { at: 2.0, remarks, ..TopSample::default() });
    let screen = text(&state, 80, 24).unwrap();
    assert!(
        screen.starts_with("lb top  this node  nodes 0/0  no issues  NO ANSWER: no pinned maps\n")
    );
    assert!(screen.contains("new flows/s: Pods -, Services -, outside -  drops/s -"), "{screen}");
}

#[test]
fn a_degraded_node_and_one_without_an_answer_are_in_the_first_line() {
    let mut state = state(true);
    let now = state.now.as_mut().unwrap();
    now.nodes[0].verdict = "UNKNOWN".to_owned();
    now.nodes[0].because = "no agent on it".to_owned();
    now.nodes[1].verdict = "DEGRADED".to_owned();
    now.remarks = vec!["a: no agent on it".to_owned()];
    let screen = text(&state, 120, 24).unwrap();
    let first = screen.lines().next().unwrap();
    assert_eq!(first, "lb top  kind-lb  nodes 1/2  no issues  UNKNOWN a: no agent on it (+1)");
    assert!(screen.lines().nth(1).unwrap().ends_with("  a: no agent on it"), "{screen}");
}

#[test]
fn denied_flows_are_red_and_without_colors_nothing_is() {
    let colors = |state: &TopState| {
        let mut terminal = Terminal::new(TestBackend::new(100, 40)).unwrap();
        terminal.draw(|frame| draw(frame, state)).unwrap();
        let buffer = terminal.backend().buffer().clone();
        let all: Vec<Color> = buffer.content().iter().map(|cell| cell.fg).collect();
        all
    };
    assert!(colors(&state(true)).contains(&Color::Red));
    assert!(colors(&state(false)).iter().all(|color| *color == Color::Reset));
}

#[test]
fn keys_move_among_panes_and_rows() {
    let mut state = state(true);
    assert_eq!(state.pane, Pane::Services);
    key(&mut state, KeyCode::Char('j'));
    key(&mut state, KeyCode::Down);
    assert_eq!(state.selected_in(Pane::Services), 2);
    key(&mut state, KeyCode::Char('G'));
    assert_eq!(state.selected_in(Pane::Services), state.services().len() - 1);
    key(&mut state, KeyCode::Char('j'));
    assert_eq!(state.selected_in(Pane::Services), state.services().len() - 1, "no row behind it");
    key(&mut state, KeyCode::Char('g'));
    assert_eq!(state.selected_in(Pane::Services), 0);
    key(&mut state, KeyCode::Tab);
    key(&mut state, KeyCode::Tab);
    assert_eq!(state.pane, Pane::Flows);
    key(&mut state, KeyCode::BackTab);
    assert_eq!(state.pane, Pane::Drops);
}

#[test]
fn enter_explains_a_flow() {
    let mut state = state(true);
    key(&mut state, KeyCode::Char('3'));
    let effect = key(&mut state, KeyCode::Enter);
    let flow = state.flow_lines()[0].clone();
    assert_eq!(effect, Effect::Explain(flow.ends()));
    let party = |address: &str, name: &str| super::state::FlowParty {
        address: address.to_owned(),
        name: name.to_owned(),
    };
    let flow = |src, dst, via: &str| TopFlow {
        src,
        dst,
        via: via.to_owned(),
        protocol: "TCP".to_owned(),
        ..TopFlow::default()
    };
    let pod = party("10.0.0.1:40000", "shop/cart");
    for (flow, want) in [
        (
            flow(pod.clone(), party("10.0.0.2:80", "db/orders"), ""),
            ["shop/cart", "db/orders:80/tcp"],
        ),
        (
            flow(pod.clone(), party("10.96.0.1:80", ""), "db/orders:sql"),
            ["shop/cart", "svc:db/orders:sql"],
        ),
        (
            flow(party("[fd00::1]:4000", ""), party("[fd00::2]:80", ""), ""),
            ["fd00::1", "[fd00::2]:80/tcp"],
        ),
    ] {
        assert_eq!(flow.ends(), want);
    }
}

#[test]
fn enter_says_what_to_do_about_a_reason() {
    let mut state = state(true);
    key(&mut state, KeyCode::Char('2'));
    assert_eq!(key(&mut state, KeyCode::Enter), Effect::Draw);
    assert!(text(&state, 100, 30).unwrap().contains("what to do:"));
    key(&mut state, KeyCode::Esc);
    assert_eq!(state.overlay, None);
}

#[test]
fn the_filter_is_for_all_panes() {
    let mut state = state(true);
    let all = state.flow_lines().len();
    key(&mut state, KeyCode::Char('/'));
    for character in "prometheus".chars() {
        key(&mut state, KeyCode::Char(character));
    }
    let found = state.flow_lines().len();
    assert!(0 < found && found < all, "{found} of {all}");
    assert!(state.services().is_empty());
    key(&mut state, KeyCode::Enter);
    assert!(text(&state, 80, 24).unwrap().contains("filter: prometheus (Esc)"));
    key(&mut state, KeyCode::Esc);
    assert_eq!(state.flow_lines().len(), all);
}

#[test]
fn a_paused_screen_keeps_its_flows() {
    let mut state = state(true);
    let shown = state.flows.len();
    key(&mut state, KeyCode::Char(' '));
    state.saw(TopFlow::default());
    assert_eq!((state.flows.len(), state.waiting.len()), (shown, 1));
    assert!(text(&state, 80, 24).unwrap().contains("paused, 1 wait"));
    key(&mut state, KeyCode::Char(' '));
    assert_eq!((state.flows.len(), state.waiting.len()), (shown + 1, 0));
}

#[test]
fn the_keys_are_shown_and_quit_ends() {
    let mut state = state(true);
    key(&mut state, KeyCode::Char('?'));
    assert_eq!(state.overlay, Some(Overlay::Help));
    assert!(text(&state, 80, 24).unwrap().contains("Tab, 1 2 3"));
    assert_eq!(key(&mut state, KeyCode::Char('q')), Effect::Draw, "it closes the keys");
    assert_eq!(key(&mut state, KeyCode::Char('q')), Effect::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(press(&mut state, interrupt), Effect::Quit);
}

#[test]
fn nodes_that_count_the_same_thing_are_added() {
    let sample = sample(0.0);
    let web = sample.services.iter().find(|service| service.name == "web").unwrap();
    // 46 flows were opened on node a, 17 on node b.
    assert_eq!((web.ready, web.endpoints, web.flows), (1, 1, 63));
    assert_eq!(sample.nodes.len(), 2);
}
