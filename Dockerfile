# A node in a container, for trials: restarting this container ends its tasks.
# The context is what scripts/images/node assembles: the static binary, runc and runc's libraries.
#   scripts/images/node /tmp/skep-image && docker build -f Dockerfile -t skep /tmp/skep-image
#   docker run -d --name skep --network host --cgroupns host -v /sys/fs/cgroup:/sys/fs/cgroup \
#     --device /dev/fuse --cap-add SYS_ADMIN --cap-add NET_ADMIN --cap-add IPC_LOCK \
#     --security-opt seccomp=unconfined --security-opt apparmor=unconfined skep
#   docker exec skep skep swarm init
FROM scratch
COPY . /
ENV PATH=/usr/local/bin:/usr/bin
# Layers are stacked here, which does not work on top of the container's own stack.
VOLUME /var/lib/skep
EXPOSE 2377/udp
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/skep"]
CMD ["daemon"]
