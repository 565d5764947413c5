//! Snapshots of any content, behind a checksum that is right.

use std::path::Path;

use flate2::read::GzDecoder;
use tinyvmm::config::MachineConfig;
use tinyvmm::machine::Renewal;
use tinyvmm::virtio::contract::DEVICE_CASES;
use tinyvmm::virtio::saved::VirtioState;
use tinyvmm_cli::snapshot::{MemoryPlace, Restored, Snapshot};

/// What the file `state` has after its checksum.
pub fn snapshot(data: &[u8]) {
    let Ok(snapshot) = serde_json::from_slice::<Snapshot>(data) else { return };
    let mut machine = MachineConfig::default();
    let (state, memory) =
        (Path::new("/no/such/state"), MemoryPlace::File("/no/such/memory".into()));
    let _ = Restored::new(snapshot, state, memory, Renewal::default(), &mut machine);
}

/// One of each version.
pub fn snapshots() -> Vec<Vec<u8>> {
    let files: [&[u8]; 2] = [
        include_bytes!("../snapshot/versions/1/state.gz"),
        include_bytes!("../snapshot/versions/2/state.gz"),
    ];
    let json = |file: &[u8]| {
        let text = std::io::read_to_string(GzDecoder::new(file)).unwrap();
        text.splitn(3, '\n').last().unwrap().into()
    };
    files.into_iter().map(json).collect()
}

/// The state of a device: the first byte says of which one. Whatever it is, the device works after a reset.
pub fn device(data: &[u8]) {
    let Some((which, json)) = data.split_first() else { return };
    let case = &DEVICE_CASES[usize::from(*which) % DEVICE_CASES.len()];
    let Ok(state) = serde_json::from_slice::<VirtioState>(json) else { return };
    let mut driver = case.driver().by_hand();
    if driver.mmio.restore(&state).is_ok() {
        driver.mmio.transport.resume().unwrap();
        (0..driver.queue_count()).for_each(|queue| driver.kick(queue));
    }
    driver.init();
    case.works(&mut driver);
}

/// That of each device, with a request that waits.
pub fn devices() -> Vec<Vec<u8>> {
    let state = |(which, case): (u8, &tinyvmm::virtio::contract::DeviceCase)| {
        let mut driver = case.driver().by_hand();
        driver.init();
        case.add(&mut driver, 0);
        driver.mmio.transport.pause();
        let mut seed = vec![which];
        seed.extend(serde_json::to_vec(&driver.mmio.save().unwrap()).unwrap());
        seed
    };
    (0..).zip(DEVICE_CASES.iter()).map(state).collect()
}
