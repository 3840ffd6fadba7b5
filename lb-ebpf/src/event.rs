//! Events of flows: samples of what happened, for whoever follows them.

use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use lb_common::event::{self, FlowEvent, Sample};
use lb_common::limits;
use lb_common::verdict::Counter;

use crate::{kernel, maps};

#[btf_map(name = "samples")]
static SAMPLES: PerCpuArray<Sample, { event::SAMPLES as usize }> = PerCpuArray::new();

#[btf_map(name = "events")]
static EVENTS: RingBuf<FlowEvent, { limits::EVENTS_BYTES as usize }> = RingBuf::new();

/// Sends the event in the scratch memory, unless this CPU has recently sent many events of the same device or sender. Fills
/// in the time and the number of suppressed events.
#[inline(always)]
pub(crate) fn emit(event: &mut FlowEvent) {
    let device = SAMPLES.get_ptr_mut(event::device_place(event.ifindex, event.reason));
    let sender = SAMPLES.get_ptr_mut(event::sender_place(event.ifindex, &event.src));
    let (Some(device), Some(sender)) = (device, sender) else { return };
    let window = kernel::now() << 8;
    // SAFETY: this CPU's slot, see `count_index`.
    let Sample { window: last, suppressed } = unsafe { device.read() };
    // SAFETY: as above.
    let Sample { window: last_sent, .. } = unsafe { sender.read() };
    let of_device = if last & !0xff == window { last & 0xff } else { 0 };
    let of_sender = if last_sent & !0xff == window { last_sent & 0xff } else { 0 };
    if of_device >= event::PER_DEVICE || of_sender >= event::PER_SENDER {
        // SAFETY: as above.
        unsafe { (*device).suppressed = suppressed.wrapping_add(1) };
        maps::count(Counter::EventSuppressed);
        return;
    }
    // SAFETY: as above.
    unsafe { device.write(Sample { window: window | (of_device + 1), suppressed: 0 }) };
    // SAFETY: as above.
    unsafe { sender.write(Sample { window: window | (of_sender + 1), suppressed: 0 }) };
    event.suppressed = suppressed;
    event.time_ns = kernel::time_ns();
    if EVENTS.output(event, 0).is_err() {
        maps::count(Counter::EventLost);
    }
}
