# Azurite in compose.yaml: the packages of the local stack's own lock file, so the same version everywhere.
FROM node:22-slim
WORKDIR /azurite
COPY broker/local/stack/package.json broker/local/stack/package-lock.json broker/local/stack/azurite_sas.cjs ./
RUN npm ci --ignore-scripts --omit=dev --no-audit --no-fund \
 && mkdir /data && chown node:node /data
USER node
VOLUME /data
EXPOSE 10000
CMD ["node", "--require", "/azurite/azurite_sas.cjs", "node_modules/azurite/dist/src/blob/main.js", \
     "--blobHost", "0.0.0.0", "--blobPort", "10000", \
     "--blobKeepAliveTimeout", "60", "--location", "/data", "--skipApiVersionCheck", "--silent", "--disableTelemetry"]
