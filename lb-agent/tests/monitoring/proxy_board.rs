//! The queries of kubernetes-mixin's board "Kubernetes / Proxy", of all instances, as it renders them by default.
//! Copyright kubernetes-mixin Authors, Apache-2.0.

/// Panel and query.
pub(crate) const PROXY_BOARD: [(&str, &str); 14] = [
    ("Up", r#"sum(up{cluster="", job="kube-proxy"})"#),
    (
        "Rules Sync Rate",
        r#"sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{cluster="", job="kube-proxy", instance=~".+"}[1m]))"#,
    ),
    (
        "Rules Sync Latency 99th Quantile",
        r#"histogram_quantile(0.99,rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{cluster="", job="kube-proxy", instance=~".+"}[1m]))"#,
    ),
    (
        "Network Programming Rate",
        r#"sum(rate(kubeproxy_network_programming_duration_seconds_count{cluster="", job="kube-proxy", instance=~".+"}[1m]))"#,
    ),
    (
        "Network Programming Latency 99th Quantile",
        r#"histogram_quantile(0.99, sum(rate(kubeproxy_network_programming_duration_seconds_bucket{cluster="", job="kube-proxy", instance=~".+"}[1m])) by (instance, le))"#,
    ),
    (
        "Kube API Request Rate",
        r#"sum(rate(rest_client_requests_total{cluster="",job="kube-proxy", instance=~".+",code=~"2.."}[1m]))"#,
    ),
    (
        "Kube API Request Rate",
        r#"sum(rate(rest_client_requests_total{cluster="",job="kube-proxy", instance=~".+",code=~"3.."}[1m]))"#,
    ),
    (
        "Kube API Request Rate",
        r#"sum(rate(rest_client_requests_total{cluster="",job="kube-proxy", instance=~".+",code=~"4.."}[1m]))"#,
    ),
    (
        "Kube API Request Rate",
        r#"sum(rate(rest_client_requests_total{cluster="",job="kube-proxy", instance=~".+",code=~"5.."}[1m]))"#,
    ),
    (
        "Post Request Latency 99th Quantile",
        r#"histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket{cluster="", job="kube-proxy",instance=~".+",verb="POST"}[1m])) by (verb, le))"#,
    ),
    (
        "Get Request Latency 99th Quantile",
        r#"histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket{cluster="", job="kube-proxy", instance=~".+", verb="GET"}[1m])) by (verb, le))"#,
    ),
    ("Memory", r#"process_resident_memory_bytes{cluster="", job="kube-proxy",instance=~".+"}"#),
    (
        "CPU usage",
        r#"rate(process_cpu_seconds_total{cluster="", job="kube-proxy",instance=~".+"}[1m])"#,
    ),
    ("Goroutines", r#"go_goroutines{cluster="", job="kube-proxy",instance=~".+"}"#),
];
