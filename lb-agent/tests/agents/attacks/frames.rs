//! Frames that programs could misread: tags, foreign ethertypes, addresses that no packet has, fragments and extension
//! headers that hide the port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use testbed::{
    Shape,
    frame::{Ip, PRIORITY_TAG as Q, SERVICE_TAG as AD, Tag, Tcp, flags},
};

use super::lab::{At, FAMILIES, Lab, Shared, Shot, Station};

const SYN: Tcp = Tcp::flags(flags::SYN);

/// A way that a policy closes, and the agent of the node on which it begins.
fn closed_ways(lab: &Lab) -> [(&Station, &Station); 3] {
    [(&lab.mallory, &lab.far), (&lab.mallory, &lab.client), (&lab.stranger, &lab.web)]
}

/// Stacked priority tags: the kernel takes one off before the programs and one after them. Other tags, MPLS and whatever
/// is neither IP nor ARP cross a bridge as they are.
fn tags(shape: Shape) {
    let lab = Shared::isolated(shape);
    let vlan_5 = Tag { ethertype: 0x8100, vlan: 5 };
    let stacks: [&[Tag]; 10] = [
        &[Q, Q],
        &[AD, AD],
        &[Q, AD],
        &[AD, Q],
        &[Q, Q, Q],
        &[AD, AD, AD],
        &[vlan_5],
        &[vlan_5, Q],
        &[Q, vlan_5],
        &[Q, Q, vlan_5],
    ];
    for (from, to) in closed_ways(&lab) {
        for family in FAMILIES {
            let link = lab.link(from, to);
            let denied =
                |mark: &[u8]| Ip::tcp(from.at(family, 4000), to.at(family, 8080), SYN, mark);
            let mut shots: Vec<Shot> = stacks
                .iter()
                .map(|tags| {
                    lab.shot(format!("{tags:04x?}"), |mark| vec![link.tagged(tags, &denied(mark))])
                })
                .collect();
            // In another's name as well.
            shots.push(lab.shot("tagged, as friend", |mark| {
                let ip = Ip::udp(lab.friend.at(family, 4000), to.at(family, 8080), mark);
                vec![link.tagged(&[Q, Q], &ip)]
            }));
            for ethertype in [0x8847_u16, 0x8848, 0x88b5, 0x8864, 0x0003, 0x88e5] {
                shots.push(lab.shot(format!("ethertype {ethertype:04x}"), |mark| {
                    vec![link.raw(&[], ethertype, &denied(mark).bytes())]
                }));
            }
            lab.drops(At::NodeA, "NOT_IP", (from, to, family), &shots);
            // One tag is a priority: the packet is judged as it is.
            let one = |port: u16| {
                lab.shot(format!("one tag, port {port}"), |mark| {
                    let ip = Ip::udp(from.at(family, 4000), to.at(family, port), mark);
                    vec![link.tagged(&[Q], &ip)]
                })
            };
            lab.stops(
                from,
                to,
                family,
                &[one(8080), lab.shot("no tag", |mark| vec![link.frame(&denied(mark))])],
            );
        }
    }
    // Outside the kernel takes all tags off before a Pod sees them: what is in them is judged.
    for family in FAMILIES {
        let (from, to) = (&lab.client, &lab.web);
        let link = lab.link(from, to);
        let tagged = |port: u16, tags: &'static [Tag]| {
            lab.shot(format!("{tags:04x?} from outside"), |mark| {
                let ip = Ip::udp(from.at(family, 4000), to.at(family, port), mark);
                vec![link.tagged(tags, &ip)]
            })
        };
        lab.stops(
            from,
            to,
            family,
            &[tagged(8080, &[Q]), tagged(8080, &[Q, Q]), tagged(8080, &[AD, Q])],
        );
        lab.passes(from, to, family, &[tagged(7, &[Q])]);
    }
}

#[test]
fn stacked_tags_switch_nothing_off_on_a_routed_node() {
    tags(Shape::Routed);
}

#[test]
fn stacked_tags_switch_nothing_off_behind_a_bridge() {
    tags(Shape::Bridge);
}

/// An IPv6 packet with an IPv4-mapped address belongs to no Pod, also not to the one with that IPv4 address; nor are
/// loopback, unspecified and multicast sources.
fn mapped(shape: Shape) {
    let lab = Shared::isolated(shape);
    let mapped = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => IpAddr::from(ip.to_ipv6_mapped()),
        IpAddr::V6(ip) => IpAddr::from(ip),
    };
    let v6 = 1;
    let sources = [
        mapped(lab.friend.ips[0]),
        mapped(lab.web.ips[0]),
        mapped(lab.stage.a.v4.into()),
        mapped(lab.stage.b.v4.into()),
        mapped(Ipv4Addr::new(10, 244, 1, 1).into()),
        mapped(Ipv4Addr::LOCALHOST.into()),
        Ipv6Addr::LOCALHOST.into(),
        Ipv6Addr::UNSPECIFIED.into(),
        Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
    ];
    for from in [&lab.client, &lab.far, &lab.stranger] {
        let link = lab.link(from, &lab.web);
        let shots: Vec<Shot> = sources
            .iter()
            .map(|src| {
                lab.shot(format!("source {src}"), |mark| {
                    let src = std::net::SocketAddr::new(*src, 4000);
                    vec![link.frame(&Ip::udp(src, lab.web.at(v6, 8080), mark))]
                })
            })
            .collect();
        let at = if from.name == "far" { At::NodeB } else { At::NodeA };
        lab.drops(at, "BAD_ADDRESS", (from, &lab.web, v6), &shots);
        // Quoted, too: an error about a packet that friend is said to have had from web.
        let quoted = lab.shot("quoted", |mark| {
            let web = std::net::SocketAddr::new(mapped(lab.web.ips[0]), 8080);
            let friend = std::net::SocketAddr::new(mapped(lab.friend.ips[0]), 4000);
            let quote = Ip::udp(web, friend, mark).bytes();
            vec![link.frame(&Ip::too_big(from.ips[v6], lab.web.ips[v6], 1280, &quote))]
        });
        lab.stops(from, &lab.web, v6, &[quoted]);
    }
    // What mallory sends to a mapped address goes nowhere either, open port or not.
    let link = lab.link(&lab.mallory, &lab.far);
    let shots = [7, 8080].map(|port| {
        lab.shot(format!("to a mapped address, port {port}"), |mark| {
            let dst = std::net::SocketAddr::new(mapped(lab.far.ips[0]), port);
            vec![link.frame(&Ip::udp(lab.mallory.at(v6, 4000), dst, mark))]
        })
    });
    lab.drops(At::NodeA, "BAD_ADDRESS", (&lab.mallory, &lab.far, v6), &shots);
}

#[test]
fn mapped_addresses_belong_to_no_pod_on_a_routed_node() {
    mapped(Shape::Routed);
}

#[test]
fn mapped_addresses_belong_to_no_pod_behind_a_bridge() {
    mapped(Shape::Bridge);
}

/// All clients reach web except its port 8080.
const NO_8080: &str = "
apiVersion: policy.networking.k8s.io/v1alpha2
kind: ClusterNetworkPolicy
metadata: {name: no-8080}
spec:
  tier: Admin
  priority: 1
  subject: {pods: {namespaceSelector: {}, podSelector: {matchLabels: {role: web}}
  }}
  ingress:
  - action: Deny
    from: [{namespaces: {}}]
    protocols: [{tcp: {destinationPort: {number: 8080}}}]
";

/// A Deny with a port holds for packets that hide their port: fragments and chains of extension headers.
fn hidden_ports(shape: Shape, prefix: &str) {
    let lab = Lab::new(prefix, shape, NO_8080);
    let (from, to) = (&lab.stranger, &lab.web);
    let link = lab.link(from, to);
    let frames =
        |pieces: &[Ip]| -> Vec<Vec<u8>> { pieces.iter().map(|ip| link.frame(ip)).collect() };
    for family in FAMILIES {
        let mut id = 100;
        let mut syn = |port: u16, mark: &[u8]| {
            id += 1;
            // The header has 20 bytes: 4 more, and the mark is in one piece.
            let payload = [&[0; 4], mark].concat();
            (Ip::tcp(from.at(family, 4000 + id), to.at(family, port), SYN, &payload), id)
        };
        let mut shots = vec![
            lab.shot("whole", |mark| frames(&[syn(8080, mark).0])),
            // RFC 1858: the flags are in the second piece.
            lab.shot("tiny fragments", |mark| {
                let (ip, id) = syn(8080, mark);
                frames(&ip.pieces(8, id))
            }),
            lab.shot("tiny, and in order of the last first", |mark| {
                let (ip, id) = syn(8080, mark);
                let mut pieces = ip.pieces(8, id);
                pieces.reverse();
                frames(&pieces)
            }),
            lab.shot("a later piece without a first one", |mark| {
                let (ip, id) = syn(8080, mark);
                frames(&[ip.piece(24..ip.body.len(), false, id)])
            }),
            // RFC 1858: the second piece changes what the first one said.
            lab.shot("overlapping fragments", |mark| {
                let (open, id) = syn(8081, &[0; 8]);
                let (shut, _) = syn(8080, mark);
                frames(&[open.piece(0..24, true, id), shut.piece(8..shut.body.len(), false, id)])
            }),
        ];
        if family == 1 {
            for n in [6, 7, 9] {
                shots.push(lab.shot(format!("{n} options headers"), |mark| {
                    frames(&[syn(8080, mark).0.options(n)])
                }));
            }
            shots.push(lab.shot("options behind a fragment header", |mark| {
                let (ip, id) = syn(8080, mark);
                frames(&ip.options(2).pieces(48, id))
            }));
            shots.push(lab.shot("a header that is cut off", |mark| {
                let mut ip = syn(8080, mark).0.options(1);
                ip.body[1] = 200;
                frames(&[ip])
            }));
            shots.push(lab.shot("authentication header", |mark| {
                frames(&[syn(8080, mark).0.extension(51, &[0; 14])])
            }));
            shots.push(lab.shot("encapsulated security payload", |mark| {
                frames(&[Ip::new(from.ips[family], to.ips[family], 50, mark)])
            }));
        }
        let arrived = lab.arriving(from, to, family, &shots);
        // Of overlapping pieces, and of headers that no stack takes, none is delivered by the kernel either; each is
        // to be dropped before it comes to that.
        assert_eq!(arrived, Vec::<String>::new(), "{}", lab.stage.logs());
        let honest =
            |port: u16, mark: &[u8]| Ip::tcp(from.at(family, 5000), to.at(family, port), SYN, mark);
        let mut shots = vec![
            lab.shot("another port", |mark| frames(&[honest(8081, mark)])),
            lab.shot("ordinary fragments", |mark| {
                let payload = [&[0; 2000], mark].concat();
                let ip = Ip::udp(from.at(family, 5001), to.at(family, 8080), &payload);
                frames(&ip.pieces(1400, 77))
            }),
        ];
        if family == 1 {
            shots.push(
                lab.shot("one options header", |mark| frames(&[honest(8081, mark).options(1)])),
            );
        }
        lab.passes(from, to, family, &shots);
    }
}

#[test]
fn hidden_ports_are_denied_ports_on_a_routed_node() {
    hidden_ports(Shape::Routed, "hidroute");
}

#[test]
fn hidden_ports_are_denied_ports_behind_a_bridge() {
    hidden_ports(Shape::Bridge, "hidbridge");
}
