//! An independent client: fctools starts tinyvmm as firecracker, describes machines, boots Linux, pauses, resumes,
//! limits and exchanges a disk, limits a network interface, reads metrics, and stops it. `client FIRECRACKER KERNEL INITRD`

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, io::BufRead};

use anyhow::{Context, Error, Result, ensure};
use async_executor::Executor;
use fctools::process_spawner::DirectProcessSpawner;
use fctools::runtime::smol::SmolRuntime;
use fctools::vm::api::VmApi;
use fctools::vm::configuration::{InitMethod, VmConfiguration, VmConfigurationData};
use fctools::vm::models::*;
use fctools::vm::shutdown::{VmShutdownAction, VmShutdownMethod};
use fctools::vm::{Vm, VmState};
use fctools::vmm::arguments::{VmmApiSocket, VmmArguments, VmmLogLevel};
use fctools::vmm::executor::unrestricted::UnrestrictedVmmExecutor;
use fctools::vmm::id::VmmId;
use fctools::vmm::installation::VmmInstallation;
use fctools::vmm::ownership::VmmOwnershipModel;
use fctools::vmm::resource::system::ResourceSystem;
use fctools::vmm::resource::{CreatedResourceType, MovedResourceType, Resource, ResourceType};
use futures_lite::io::BufReader;
use futures_lite::{AsyncBufReadExt, AsyncWriteExt, StreamExt};
use serde_json::Value;

type Machine = Vm<UnrestrictedVmmExecutor, DirectProcessSpawner, SmolRuntime>;
type Resources = ResourceSystem<DirectProcessSpawner, SmolRuntime>;

const MIB: u64 = 1 << 20;
/// More than any step takes in the box.
const PATIENCE: Duration = Duration::from_secs(120);
const TAP: &str = "client0";
const ARGS: &str = "console=ttyS0 panic=1 cryptomgr.notests quiet";

/// Files of a test, in a folder of its own.
struct Lab {
    folder: PathBuf,
    firecracker: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    /// There is a tap for the machines.
    has_tap: bool,
    runtime: SmolRuntime,
}

/// What has to live as long as a machine.
struct Kept {
    metrics: Resource,
    _of_flags: Resources,
}

/// Adds `doing` to an error of fctools', which has Debug but no useful Display.
fn named<T, E: std::fmt::Debug>(result: Result<T, E>, doing: &str) -> Result<T> {
    result.map_err(|error| Error::msg(format!("{doing}: {error:?}")))
}

impl Lab {
    fn resources(&self) -> Resources {
        ResourceSystem::new(DirectProcessSpawner, self.runtime.clone(), VmmOwnershipModel::Shared)
    }

    fn existing(&self, resources: &mut Resources, path: &Path) -> Result<Resource> {
        let kind = ResourceType::Moved(MovedResourceType::Copied);
        named(resources.create_resource(path, kind), "a file that exists")
    }

    fn disk(&self, name: &str, len: u64) -> Result<PathBuf> {
        let path = self.folder.join(name);
        fs::File::create(&path)?.set_len(len)?;
        Ok(path)
    }

    fn interfaces(&self) -> Vec<NetworkInterface> {
        let interface = NetworkInterface {
            iface_id: "eth0".into(),
            host_dev_name: TAP.into(),
            guest_mac: Some("02:00:00:00:00:01".into()),
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        };
        self.has_tap.then_some(interface).into_iter().collect()
    }

    /// A machine that runs `script`, before it is started.
    async fn prepared(&self, init_method: InitMethod, script: &str) -> Result<(Machine, Kept)> {
        let mut resources = self.resources();
        let kernel_image = self.existing(&mut resources, &self.kernel)?;
        let initrd = Some(self.existing(&mut resources, &self.initrd)?);
        let disk = self.disk("disk", MIB)?;
        let block = Some(self.existing(&mut resources, &disk)?);
        let created = |resources: &mut Resources, name: &str, kind| {
            let path = self.folder.join(name);
            let _ = fs::remove_file(&path);
            named(resources.create_resource(path, ResourceType::Created(kind)), name)
        };
        // Files that flags name are created, and removed, once more for each list that they are in.
        let mut of_flags = self.resources();
        let logs = created(&mut of_flags, "log", CreatedResourceType::File)?;
        let metrics = created(&mut resources, "metrics", CreatedResourceType::Fifo)?;
        let by_requests = init_method == InitMethod::ViaApiCalls;
        let metrics_system = by_requests.then(|| MetricsSystem { metrics: metrics.clone() });
        let data = VmConfigurationData {
            boot_source: BootSource {
                kernel_image,
                boot_args: Some(format!("{ARGS} -- \"{script}\"")),
                initrd,
            },
            drives: vec![Drive {
                drive_id: "data".into(),
                is_root_device: false,
                cache_type: Some(DriveCacheType::Writeback),
                partuuid: None,
                is_read_only: Some(false),
                block,
                rate_limiter: None,
                io_engine: Some(DriveIoEngine::Sync),
                socket: None,
            }],
            machine_configuration: MachineConfiguration {
                vcpu_count: 1,
                mem_size_mib: 256,
                smt: Some(false),
                track_dirty_pages: Some(false),
                huge_pages: Some(HugePages::None),
            },
            cpu_template: None,
            network_interfaces: self.interfaces(),
            balloon_device: None,
            vsock_device: None,
            logger_system: None,
            metrics_system,
            mmds_configuration: None,
            entropy_device: None,
        };
        let socket = VmmApiSocket::Enabled(self.folder.join("api.sock"));
        let arguments = VmmArguments::new(socket).log_level(VmmLogLevel::Info).show_log_level();
        let arguments = arguments.show_log_origin().enable_boot_timer().logs(logs);
        let id = named(VmmId::new("client-vm"), "a name")?;
        let executor = UnrestrictedVmmExecutor::new(arguments).id(id);
        let none = Path::new("/none");
        let installation = VmmInstallation::new(&*self.firecracker, none, none);
        let configuration = VmConfiguration::New { init_method, data };
        let vm = Vm::prepare(executor, resources, installation, configuration).await;
        let vm = named(vm, "prepare")?;
        named(of_flags.synchronize().await, "the log")?;
        Ok((vm, Kept { metrics, _of_flags: of_flags }))
    }

    /// A machine that is described in a file: it boots, and ends when its guest does.
    async fn by_file(&self) -> Result<()> {
        let method = InitMethod::ViaJsonConfiguration(self.folder.join("vm.json"));
        let (mut vm, _kept) =
            self.prepared(method, "devmem 0xc0000000 8 123; read x; echo bye").await?;
        named(vm.start(PATIENCE).await, "start")?;
        let info = named(vm.get_info().await, "info")?;
        ensure!(info.id == "client-vm" && !info.is_paused, "{info:?}");
        // Input before the guest listens is lost.
        let has_booted = || {
            fs::read_to_string(self.folder.join("log"))
                .is_ok_and(|log| log.contains("Guest-boot-time"))
        };
        let end = Instant::now() + PATIENCE;
        while !has_booted() {
            ensure!(Instant::now() < end, "the boot timer is not logged");
            a_moment().await;
        }
        let stop =
            |method, graceful| VmShutdownAction { method, timeout: Some(PATIENCE), graceful };
        let serial = VmShutdownMethod::WriteToSerial(b"\n".into());
        let outcome = vm.shutdown([stop(serial, true), stop(VmShutdownMethod::Kill, false)]).await;
        let outcome = named(outcome, "shutdown")?;
        ensure!(outcome.is_fully_graceful(), "{outcome:?}");
        named(vm.cleanup().await, "clean up")?;
        ensure!(!self.folder.join("api.sock").exists(), "the socket is left");
        Ok(())
    }

    /// A machine that is described over the API, and every request for it.
    async fn by_requests(&self) -> Result<()> {
        let script = "dd if=/dev/vda of=/dev/null bs=64k iflag=direct; echo up=1; \
            while [ $(cat /sys/block/vda/size) = 2048 ]; do sleep 0.1; done; \
            echo size=$(cat /sys/block/vda/size); read x; echo bye=$x";
        let (mut vm, kept) = self.prepared(InitMethod::ViaApiCalls, script).await?;
        named(vm.start(PATIENCE).await, "start")?;
        let mut pipes = named(vm.take_pipes(), "pipes")?;
        let mut lines = BufReader::new(pipes.stdout).lines();
        wait_for(&mut lines, "up=1").await?;

        ensure!(named(vm.get_firecracker_version().await, "version")? == "1.16.1", "version");
        let machine = named(vm.get_machine_configuration().await, "machine")?;
        ensure!((machine.vcpu_count, machine.mem_size_mib) == (1, 256), "{machine:?}");
        named(vm.pause().await, "pause")?;
        ensure!(named(vm.get_info().await, "info")?.is_paused && vm.get_state() == VmState::Paused);
        named(vm.resume().await, "resume")?;
        ensure!(!named(vm.get_info().await, "info")?.is_paused, "it goes on");

        named(vm.flush_metrics().await, "flush")?;
        let path = kept.metrics.get_effective_path().context("a path")?.to_owned();
        // Not by fctools: it insists on fields that Firecracker has no more. Each line is there when it is read.
        let mut metrics = std::io::BufReader::new(fs::File::open(path)?).lines();
        let mut line = || -> Result<Value> {
            Ok(serde_json::from_str(&metrics.next().context("a line of metrics")??)?)
        };
        let (started, first) = (line()?, line()?);
        let figure =
            |line: &Value, group: &str, name: &str| line[group][name].as_u64().unwrap_or(0);
        ensure!(figure(&started, "put_api_requests", "actions_count") == 1, "{started}");
        let [bytes, count, fails] =
            ["read_bytes", "read_count", "execute_fails"].map(|name| figure(&first, "block", name));
        let bytes = bytes + figure(&started, "block", "read_bytes");
        ensure!(bytes >= MIB && count > 0 && fails == 0, "{first}");
        ensure!(figure(&first, "latencies_us", "pause_vm") > 0, "{first}");

        // The guest has asked for an address.
        ensure!(!self.has_tap || figure(&first, "net", "tx_packets_count") > 0, "{first}");
        let bucket = TokenBucket { size: 1000, one_time_burst: None, refill_time: 100 };
        let rate_limiter = Some(RateLimiter {
            bandwidth: TokenBucket { size: MIB, ..bucket.clone() },
            ops: bucket,
        });
        if self.has_tap {
            let limits = UpdateNetworkInterface {
                iface_id: "eth0".into(),
                rx_rate_limiter: rate_limiter.clone(),
                tx_rate_limiter: rate_limiter.clone(),
            };
            named(vm.update_network_interface(limits).await, "limits of an interface")?;
        }
        let larger = self.disk("larger", 3 * MIB)?;
        let block = self.existing(vm.get_resource_system_mut(), &larger)?;
        named(block.start_initialization_with_same_path(), "another file")?;
        named(vm.get_resource_system_mut().synchronize().await, "another file")?;
        let block = Some(block);
        let update = UpdateDrive { drive_id: "data".into(), block, rate_limiter };
        named(vm.update_drive(update).await, "another disk")?;
        wait_for(&mut lines, "size=6144").await?;

        pipes.stdin.write_all(b"x\n").await?;
        wait_for(&mut lines, "bye=x").await?;
        while vm.get_state() == VmState::Running {
            a_moment().await;
        }
        ensure!(vm.get_state() == VmState::Exited, "{:?}", vm.get_state());
        let (then, now) = (&first["utc_timestamp_ms"], &line()?["utc_timestamp_ms"]);
        ensure!(now.as_u64() >= then.as_u64() && then.is_u64(), "{then}, {now}");
        named(vm.cleanup().await, "clean up")
    }
}

/// A moment.
async fn a_moment() {
    futures_lite::future::yield_now().await;
    std::thread::sleep(Duration::from_millis(20));
}

/// Reads lines of the guest's up to `wanted`.
async fn wait_for<R>(lines: &mut futures_lite::io::Lines<R>, wanted: &str) -> Result<()>
where
    R: AsyncBufReadExt + Unpin,
{
    let mut seen = String::new();
    while let Some(line) = lines.next().await {
        let line = line?;
        if line.trim() == wanted {
            return Ok(());
        }
        seen += &(line + "\n");
    }
    Err(Error::msg(format!("the guest did not print {wanted}:\n{seen}")))
}

/// Makes a tap; false where that cannot be.
fn make_tap() -> bool {
    let script = format!("modprobe -q tun; ip tuntap add {TAP} mode tap && ip link set {TAP} up");
    let made = Command::new("sh").args(["-c", &script]).status().is_ok_and(|made| made.success());
    if !made {
        println!("client: SKIPPED: no tap can be made here, so there is no network interface");
    }
    made
}

fn main() -> Result<()> {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let mut next = || args.next().context("client FIRECRACKER KERNEL INITRD");
    let (tinyvmm, kernel, initrd) = (next()?, next()?, next()?);
    let folder = env::temp_dir().join(format!("client-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let firecracker = folder.join("firecracker");
    std::os::unix::fs::symlink(fs::canonicalize(tinyvmm)?, &firecracker)?;
    let executor = Arc::new(Executor::new());
    let runtime = SmolRuntime::with_executor(executor.clone());
    let has_tap = make_tap();
    let lab = Lab { folder, firecracker, kernel, initrd, has_tap, runtime };
    let result = futures_lite::future::block_on(executor.run(async {
        lab.by_file().await.context("a machine that a file describes")?;
        println!("client: a machine that a file describes: ok");
        lab.by_requests().await.context("a machine that requests describe")
    }));
    if result.is_err() {
        eprintln!("{}", fs::read_to_string(lab.folder.join("log")).unwrap_or_default());
    }
    fs::remove_dir_all(&lab.folder)?;
    if has_tap {
        Command::new("ip").args(["link", "delete", TAP]).status()?;
    }
    result?;
    println!("client: a machine that requests describe: ok");
    Ok(())
}
