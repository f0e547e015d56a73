"""The names that the orchestrations, the activities and the bridge have in common."""

from __future__ import annotations

from typing import Final

GET_NEW_DEVICE_IDS: Final = "GetNewDeviceIds"
CREATE_INSTALLATION_PACKAGE: Final = "CreateInstallationPackage"
SEND_PACKAGE_URL_TO_DEVICE: Final = "SendPackageUrlToDevice"
ACTIVATE_DEVICE: Final = "ActivateDevice"
RECORD_OUTCOME: Final = "RecordOutcome"

DOWNLOAD_COMPLETED_ACK: Final = "DownloadCompletedAck"
DOWNLOAD_FAILED: Final = "DownloadFailed"
PACKAGE_REJECTED: Final = "PackageRejected"
ACTIVATION_COMPLETED: Final = "ActivationCompleted"
ACTIVATION_FAILED: Final = "ActivationFailed"
DEVICE_RETURNED: Final = "DeviceReturned"
"""The device may have missed what was sent: it was started again, or the broker has lost a session."""
CANCEL_PROVISIONING: Final = "CancelProvisioning"
"""An operator has cancelled it: the device has been told, and nothing is waited for any more."""
# Why an activation fails on a device that was switched off and kept nothing.
PACKAGE_NOT_PRESENT: Final = "package-not-present"

REJECTED_BY_DEVICE: Final = "rejected the package"
"""How the error of a device begins that has rejected what it was sent."""
OLDER_VERSION: Final = "older-version"
"""Why a device rejects a package whose version is older than what it runs."""
DEADLINE: Final = "deadline of "
"""How the error of a device begins that was ended by a deadline other than those of its answers."""
