//! Golden dump of every type that crosses the boundary. A change here is a change of the map ABI: raise the version
//! of the map in `limits.rs`, then `UPDATE_EXPECT=1 cargo test -p lb-common --test layout`.

use expect_test::expect_file;
use lb_common::pod::FieldLayout;
use lb_common::{
    account, budget, config, conntrack, endpoint, event, fragment, limits, past, policy, service,
    socket,
};

fn dump(name: &str, size: usize, layout: &[FieldLayout]) -> String {
    let mut out = format!("{name} {size}\n");
    for field in layout {
        out += &format!("  {:3} {:3} {}\n", field.offset, field.size, field.name);
    }
    out
}

macro_rules! dump {
    ($($type:ty),+ $(,)?) => {
        [$(dump(stringify!($type), size_of::<$type>(), <$type>::LAYOUT)),+].join("")
    };
}

#[test]
fn layout_is_the_golden_one() {
    let mut out = String::from("# map version\n");
    for map in limits::MAPS {
        out += &format!("{} {}\n", map.name, map.version);
    }
    out += "# type size, then offset size field\n";
    out += &dump!(
        service::FrontendKey,
        service::Frontend,
        service::Backend,
        service::AffinityKey,
        service::Affinity,
        service::SourceRange,
        endpoint::PodEntry,
        past::LocalEnd,
        endpoint::PodSource,
        endpoint::Ident,
        endpoint::Dev,
        conntrack::CtKey,
        conntrack::CtEntry,
        fragment::FragmentKey,
        fragment::FragmentPorts,
        socket::SkNat,
        socket::SkNatRing,
        socket::SkMoreKey,
        event::FlowEvent,
        event::Sample,
        config::Config,
        config::Settings,
        config::Cidr,
        policy::Group,
        policy::PeerKey,
        policy::PortKey,
        policy::Bits,
        policy::HitKey,
        policy::PolicyState,
        budget::Budget,
        account::AccountKey,
        account::AccountEntry,
    );
    expect_file!["layout.txt"].assert_eq(&out);
}
