// Stands in for packages that the local stack never uses (see ../package.json): Azurite's telemetry client,
// which it requires at start even with telemetry disabled, and its SQL drivers.
module.exports = {}
