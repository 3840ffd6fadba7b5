//! `lbctl top` and `lbctl ui` on real tables. The page is asked from within its own network namespace.

use std::process::Command;

use super::filled::Node;

#[test]
fn top_prints_the_screen_once_without_a_terminal() {
    let node = Node::new();
    node.write_names();
    let output = node.lbctl(&["top", "--once", "--interval", "1"]).output().unwrap();
    let screen = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        output.status.code(),
        Some(0),
        "{screen}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let line = |text: &str| {
        let line = screen.lines().find(|line| line.contains(text));
        line.unwrap_or_else(|| panic!("no {text}:\n{screen}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(line("lb top").starts_with("lb top node n1 nodes 1/1"), "{screen}");
    assert!(line("shop/web:http").contains("shop/web:http 2/2 1 0"), "{screen}");
    assert!(line("NO_ENDPOINTS").contains("NO_ENDPOINTS out 0 1000"), "{screen}");
    assert!(line("drops/s").contains("no agent answers at"), "{screen}");
}

#[test]
fn the_page_answers_who_has_its_url_and_no_other_request() {
    const SCRIPT: &str = r#"
        ip link set lo up
        coproc PAGE { exec "$0" ui; }
        read -r url <&"${PAGE[0]}"
        port=${url#http://127.0.0.1:}; port=${port%%/*}
        path=/${url#http://127.0.0.1:*/}
        ask() {
            exec 3<>"/dev/tcp/127.0.0.1/$port"
            printf 'GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n' "$1" "$2" >&3
            echo "== $3"
            cat <&3
            exec 3>&-
        }
        ask "$path" "127.0.0.1:$port" page
        ask "${path}api/services" "127.0.0.1:$port" services
        ask "${path}api/services" "evil.example:$port" rebinding
        ask "/api/services" "127.0.0.1:$port" "without the token"
        ask "${path}api/sysdump" "127.0.0.1:$port" "no question"
        kill "$PAGE_PID"
    "#;
    let node = Node::new();
    node.write_names();
    let mut command = Command::new("unshare");
    command.args(["--net", "bash", "-c", SCRIPT, env!("CARGO_BIN_EXE_lbctl")]);
    command.env("LB_PIN_DIR", &node.pin_dir).env("LB_STATE_DIR", &node.state_dir);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let answer = |name: &str| {
        let (_, rest) = text
            .split_once(&format!("== {name}\n"))
            .unwrap_or_else(|| panic!("{name}: {text}{error}"));
        rest.split("\n== ").next().unwrap().to_owned()
    };
    let page = answer("page");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<!doctype html>"), "{page}");
    assert!(page.contains("content-security-policy: default-src 'none'"), "{page}");
    let services = answer("services");
    assert!(services.contains(r#""code":0"#) && services.contains(r#""name":"web""#), "{services}");
    for (name, status) in [("rebinding", 421), ("without the token", 404), ("no question", 404)] {
        let answer = answer(name);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
    }
}
