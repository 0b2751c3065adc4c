# Nomad 1.5 or newer, with Docker; Consul is not needed. Each HAProxy measures from where it stands, and they share
# nothing.
#
#   1. Build the image and push it to your registry; write your servers into haproxy.cfg.
#   2. Change here what is marked CHANGE.
#   3. nomad var put -force nomad/jobs/multicloud haproxy_cfg=@haproxy.cfg
#      nomad job run deploy/nomad.hcl
#
# What it measures and decides:
#
#   nomad alloc exec -job multicloud multicloud status
#
# After a change of haproxy.cfg: the first command of step 3 again. Nomad writes the file and HAProxy reloads it, losing
# no client and no sample; with a mistake in it, HAProxy serves on with the old one.

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
        image = "registry.example.com/multicloud:0.1.0" # CHANGE
        ports = ["http", "stats"]

        # The directory: of a file alone, the container would keep seeing the first version.
        volumes         = ["local:/usr/local/etc/haproxy:ro"]
        readonly_rootfs = true

        # The samples.
        mount {
          type   = "tmpfs"
          target = "/tmp"
          tmpfs_options {
            size = 67108864
          }
        }

        # The Runtime API's socket.
        mount {
          type   = "tmpfs"
          target = "/var/lib/haproxy"
          tmpfs_options {
            size = 1048576
          }
        }
      }

      template {
        destination   = "local/haproxy.cfg"
        change_mode   = "signal"
        change_signal = "SIGUSR2"
        data          = <<-END
          {{ with nomadVar "nomad/jobs/multicloud" }}{{ .haproxy_cfg }}{{ end }}
        END
      }

      env {
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
