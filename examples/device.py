"""A device in thirty lines: any MQTT library will do. It checks size and hash, and not the signature.

muster enrolment add my-device
muster enrolment token my-device --key > my-device.key
python examples/device.py my-device my-device.key 127.0.0.1 1883    # the broker that `muster up` prints
"""

import base64
import hashlib
import hmac
import json
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path

import paho.mqtt.client as mqtt

DEVICE, KEY_FILE, HOST, PORT = sys.argv[1:]
# The local broker compares with the token of the device's present period (docs/SECURITY.md).
PERIOD_S = 86_400


def token() -> str:
    key, resource = base64.b64decode(Path(KEY_FILE).read_text()), f"muster%2Fregistrations%2F{DEVICE}"
    begin = int.from_bytes(hashlib.sha256(DEVICE.encode()).digest()[:8], "big") % PERIOD_S
    expiry = (int(time.time() - begin) // PERIOD_S + 2) * PERIOD_S + begin
    signature = base64.b64encode(hmac.digest(key, f"{resource}\n{expiry}".encode(), "sha256"))
    return f"SharedAccessSignature sr={resource}&sig={urllib.parse.quote(signature, safe='')}&se={expiry}"


def say(kind: str, **fields: object) -> None:
    client.publish(
        f"devices/{DEVICE}/{kind}", json.dumps({"v": 1, **fields}), qos=1, retain=kind == "presence"
    )


def on_connect(*_: object) -> None:
    client.subscribe([(f"devices/{DEVICE}/package", 1), (f"devices/{DEVICE}/commands/+", 1)])
    say("presence", state="online")
    say("register", model="example", firmware_version="0.0.1", tags={"written-in": "python"})


def on_disconnect(*_: object) -> None:
    client.username_pw_set(DEVICE, token())  # it may be that of the period before which is refused now


def on_message(_client: object, _data: object, message: mqtt.MQTTMessage) -> None:
    asked = json.loads(message.payload)
    about = {name: asked[name] for name in ("instance_id", "package_id", "attempt") if name in asked}
    if message.topic.endswith("/Activate"):
        say("events/ActivationCompleted", **about, firmware_version=asked["release"])
    elif message.topic.endswith("/package"):
        package = urllib.request.urlopen(asked["url"]).read()  # noqa: S310
        found = {"size_bytes": len(package), "sha256": hashlib.sha256(package).hexdigest()}
        if all(asked[name] == value for name, value in found.items()):
            say("events/DownloadCompletedAck", **about, **found)
        else:
            say("events/DownloadFailed", **about, reason="hash-mismatch")


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=DEVICE, clean_session=False)
client.username_pw_set(DEVICE, token())
client.will_set(f"devices/{DEVICE}/presence", '{"v":1,"state":"offline"}', qos=1, retain=True)
client.on_connect, client.on_disconnect, client.on_message = on_connect, on_disconnect, on_message
client.connect(HOST, int(PORT))
client.loop_forever()
