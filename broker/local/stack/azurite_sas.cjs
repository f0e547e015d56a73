// Loaded into Azurite before its own code (node --require): SAS URLs that name a stored access policy.
//
// Azure takes start, expiry and permissions of such a URL from the URL or the policy, wherever each is said. Azurite
// takes all three from the policy, even those that it does not say: a URL with an expiry of its own would never
// expire. Here what the policy leaves open stays as the URL says it.
'use strict'

const { dirname, join } = require('node:path')

const SAID_IN_EITHER = ['startTime', 'expiryTime', 'permissions']

const blob = dirname(process.argv[1])
const { prototype } = require(join(blob, 'authentication', 'BlobSASAuthenticator.js')).default
const read = prototype.getBlobSASSignatureValuesFromRequest

prototype.getBlobSASSignatureValuesFromRequest = function (...request) {
  const values = read.apply(this, request)
  for (const name of values === undefined ? [] : SAID_IN_EITHER) keepUnlessSaid(values, name)
  return values
}

function keepUnlessSaid (values, name) {
  let value = values[name]
  Object.defineProperty(values, name, {
    enumerable: true,
    get: () => value,
    set: (said) => {
      if (said !== undefined && said !== '') value = said
    }
  })
}
