# Nomad 1.5 or newer, with Docker; Consul is not needed. Each HAProxy measures from where it stands, and they share
# nothing.
#
#   1. Build the image and push it to your registry.
#   2. Change here what is marked CHANGE.
#   3. nomad job run deploy/nomad.hcl
#
# What it measures and decides:
#
#   nomad alloc exec -job multicloud multicloud status
#
# After a change, such as one more server: step 3 again. One instance after the other is replaced, and none before the
# one before it is healthy.

job "multicloud" {
  group "edge" {
    # Each on a client of its own, since there is one port 80.
    count = 2

    network {
      port "http" {
        static = 80
        to     = 8080
      }
      port "stats" {
        to = 9000
      }
    }

    service {
      name     = "multicloud"
      provider = "nomad"
      port     = "http"

      # HAProxy answers. Not a path of the application: that all servers are down is not this job's health.
      check {
        type     = "http"
        port     = "stats"
        path     = "/"
        interval = "10s"
        timeout  = "3s"
      }
    }

    task "haproxy" {
      driver = "docker"

      # Clients may finish: 5 s until nobody sends new ones, then SIGUSR1. Nomad's clients allow no more than 30 s unless
      # their max_kill_timeout does.
      shutdown_delay = "5s"
      kill_signal    = "SIGUSR1"
      kill_timeout   = "30s"

      config {
        image = "registry.example.com/multicloud:0.2.0" # CHANGE
        ports = ["http", "stats"]
        readonly_rootfs = true

        # The samples.
        mount {
          type   = "tmpfs"
          target = "/tmp"
          tmpfs_options {
            size = 67108864
          }
        }

        # The Runtime API's socket, and the configuration, which is made of MULTICLOUD_SERVERS.
        mount {
          type   = "tmpfs"
          target = "/var/lib/haproxy"
          tmpfs_options {
            size = 1048576
          }
        }
      }

      env {
        # CHANGE: host names, or NAME=ADDRESS:PORT as for `multicloud config`.
        MULTICLOUD_SERVERS = "app-eu.example.com app-us.example.com"
        # Any other setting likewise, such as: MULTICLOUD_PATH = "/healthz"
        # IPv6 as well, where the clients have it: ADDRESS = "::"
        # What your servers are told in the header Fly_Extra.
        FLY_REGION = "${node.datacenter}"
      }

      resources {
        cpu = 250
        # A hard limit, which the checks that run at the same time share with HAProxy and the tmpfs.
        memory = 256
      }
    }
  }
}
