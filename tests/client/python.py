"""An independent client: the API's module of firecracker-python, a machine from its description to a copy of it.

`python.py SOCKET COPY SNAPSHOT`: two sockets at which machines wait, the first in a folder with its files; and a folder
for what the second is made of.
"""

import importlib.util
import os
import sys
import time
import types

# The package itself starts Docker, SSH and nftables, which its modules for the API do without.
found = importlib.util.find_spec("firecracker")
if found is None:
    sys.exit(77)
package = types.ModuleType("firecracker")
package.__path__ = list(found.submodule_search_locations)
sys.modules["firecracker"] = package

from firecracker.api import Api  # noqa: E402
from firecracker.exceptions import APIError  # noqa: E402


def state(api):
    return api.describe.get().json()["state"]


def describe_and_start(api):
    """What MicroVM.create() puts, in its order, but for the network."""
    assert state(api) == "Not started"
    assert api.version.get().json()["firecracker_version"] == "1.16.1"
    api.boot.put(kernel_image_path="./vmlinux", boot_args="console=ttyS0 reboot=k panic=1")
    api.drive.put(drive_id="rootfs", path_on_host="./disk", is_root_device=True, is_read_only=False)
    api.machine_config.put(vcpu_count=1, mem_size_mib=64)
    api.vsock.put(guest_cid=3, uds_path="./v.sock")
    api.actions.put(action_type="InstanceStart")
    described = api.vm_config.get().json()
    assert described["machine-config"]["mem_size_mib"] == 64, described
    assert described["vsock"] == {"guest_cid": 3, "uds_path": "./v.sock"}, described


def pause_and_copy(api, folder):
    """MicroVM.snapshot(), which pauses, and resumes again."""
    api.vm.patch(state="Paused")
    assert state(api) == "Paused"
    api.create_snapshot.put(mem_file_path=f"{folder}/memory", snapshot_path=f"{folder}/state")
    api.vm.patch(state="Resumed")
    assert state(api) == "Running"


def end(api, socket):
    """Presses the power button until the machine is gone: a guest that is not ready yet misses it."""
    while os.path.exists(socket):
        try:
            api.actions.put(action_type="SendCtrlAltDel")
        except Exception:  # noqa: BLE001, the package has several for a machine that is just going
            pass
        time.sleep(0.2)
    api.close()


def main(socket, copy, folder):
    api = Api(socket)
    describe_and_start(api)
    try:
        api.drive.put(drive_id="late", path_on_host="./disk", is_root_device=False, is_read_only=False)
        sys.exit("a drive that comes too late is not refused")
    except APIError as error:
        assert "after starting the microVM" in str(error), error
    pause_and_copy(api, folder)
    end(api, socket)  # until then the disk is the first machine's
    api = Api(copy)
    api.load_snapshot.put(
        enable_diff_snapshots=True,
        mem_backend={"backend_type": "File", "backend_path": f"{folder}/memory"},
        snapshot_path=f"{folder}/state",
        resume_vm=True,
        vsock_override={"uds_path": "./copy.sock"},
    )
    assert state(api) == "Running"
    end(api, copy)


main(*sys.argv[1:])
